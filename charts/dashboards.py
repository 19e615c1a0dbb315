"""Writes the Grafana dashboards of the chart from the tables of panels below, by Grafana's own builders.

make chart

The dashboards are `charts/dapt/files/dashboards/*.json`; a test asks a Prometheus each of their queries.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableOption, VariableRefresh
from grafana_foundation_sdk.models.dashboard import Panel as PanelModel
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER: Final = Path(__file__).parent / "dapt" / "files" / "dashboards"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
GRAFANA: Final = "10.1.0"
"""The oldest version that shows the dashboards; later ones migrate them."""
AnyPanel = stat.Panel | timeseries.Panel | table.Panel
HEIGHTS: Final = {"stat": 4, "graph": 8, "table": 8}


@dataclass(frozen=True)
class Panel:
    """A panel. `queries`: legend -> expression; `$of` is replaced by the selector of the dashboard."""

    kind: str
    title: str
    queries: dict[str, str]
    unit: str = "short"
    width: int = 8
    description: str = ""


@dataclass(frozen=True)
class Board:
    """A dashboard. `variables`: name -> query for its values; `selector`: what `$of` stands for."""

    uid: str
    title: str
    rows: dict[str, tuple[Panel, ...]]
    selector: str = ""
    variables: tuple[tuple[str, str], ...] = ()
    has_many: bool = False


WHO: Final = "{{namespace}}/{{name}}"
NAMESPACES: Final = ("namespace", "label_values(dapt_condition, namespace)")

FLEET: Final = Board(
    "dapt-fleet",
    "dapt / Fleet",
    {
        "Now": (
            Panel("stat", "Adaptations", {"": 'count(dapt_condition{type="Finished",$of})'}, width=4),
            Panel("stat", "In progress", {"": 'sum(dapt_condition{type="Reconciling",$of})'}, width=4),
            Panel("stat", "Stalled", {"": 'sum(dapt_condition{type="Stalled",$of})'}, width=4,
                  description="User action is required: the table below says why."),
            Panel("stat", "Accelerators in use", {"": "sum(dapt_running_accelerators{$of}) or vector(0)"}, width=4),
            Panel("stat", "GPU-hours", {"": "(sum(dapt_gpu_seconds_total{$of}) + (sum(dapt_running_gpu_seconds{$of})"
                  " or vector(0))) / 3600"}, unit="h", width=4),
            Panel("stat", "Cost", {"": "sum(dapt_cost{$of})"}, width=4,
                  description="At the prices of the profiles, in their currency."),
        ),
        "How they stand": (
            Panel("table", "Why", {"": "dapt_reason{$of} == 1"}, width=12),
            Panel("graph", "Phases", {"{{phase}}": "sum by (phase) (dapt_phase{$of})"}, width=12),
            Panel("graph", "Progress of pretraining", {WHO: "dapt_progress_ratio{$of}"}, unit="percentunit"),
            Panel("graph", "Time left of pretraining", {WHO: "dapt_eta_seconds{$of}"}, unit="s"),
            Panel("graph", "Waiting for nodes or quota",
                  {WHO: "time() - dapt_waiting_since_timestamp_seconds{$of}"}, unit="s"),
        ),
        "What they use": (
            Panel("graph", "Accelerators by stage", {"{{stage}}": "sum by (stage) (dapt_running_accelerators{$of})"}),
            Panel("graph", "Goodput", {WHO: "dapt_goodput_ratio{$of}"}, unit="percentunit"),
            Panel("graph", "Restarts in a day",
                  {"{{cause}}": "sum by (cause) (increase(dapt_restarts_total{$of}[1d]))"}),
        ),
        "What they learn and forget": (
            Panel("graph", "Forgetting", {WHO: "dapt_general_perplexity_increase_ratio{$of}"}, unit="percentunit",
                  width=12, description="General perplexity over the base model's, minus 1."),
            Panel("graph", "Gain", {WHO: "dapt_gain{$of}"}, width=12),
        ),
    },
    selector='namespace=~"$namespace"',
    variables=(NAMESPACES,),
    has_many=True,
)  # fmt: skip

ADAPTATION: Final = Board(
    "dapt-adaptation",
    "dapt / Adaptation",
    {
        "Now": (
            Panel("stat", "Phase", {"{{phase}}": "dapt_phase{$of}"}, width=5),
            Panel("stat", "Reason", {"{{reason}}": "dapt_reason{$of}"}, width=5),
            Panel("stat", "Progress of pretraining", {"": "dapt_progress_ratio{$of}"}, unit="percentunit", width=4),
            Panel("stat", "Time left", {"": "dapt_eta_seconds{$of}"}, unit="s", width=3),
            Panel("stat", "GPU-hours", {"": "(sum(dapt_gpu_seconds_total{$of}) + (sum(dapt_running_gpu_seconds{$of})"
                  " or vector(0))) / 3600"}, unit="h", width=4),
            Panel("stat", "Cost", {"": "dapt_cost{$of}"}, width=3),
        ),
        "Running stages": (
            Panel("graph", "Progress by stage", {"{{stage}}": "dapt_stage_progress_ratio{$of}"}, unit="percentunit",
                  width=12),
            Panel("graph", "Time left by stage", {"{{stage}}": "dapt_stage_eta_seconds{$of}"}, unit="s", width=12),
        ),
        "Learning and forgetting": (
            Panel("graph", "Forgetting", {"general": "dapt_general_perplexity_increase_ratio{$of}",
                  "domain, gained": "dapt_domain_perplexity_decrease_ratio{$of}"}, unit="percentunit"),
            Panel("graph", "Points lost by task", {"{{task}}": "dapt_task_drop_points{$of}"}),
            Panel("table", "Gates", {"": "dapt_gate_passed{$of}"}),
            Panel("stat", "Gain", {"": "dapt_gain{$of}"}, width=8),
            Panel("stat", "Selected step", {"": "dapt_selected_step{$of}"}, unit="none", width=8),
            Panel("stat", "Rollbacks", {"": "dapt_rollbacks_total{$of}"}, width=8),
        ),
        "Training": (
            Panel("graph", "Loss", {"loss": "dapt_trainer_loss{$of}"}, unit="none"),
            Panel("graph", "Learning rate", {"learning rate": "dapt_trainer_learning_rate{$of}"}, unit="sci"),
            Panel("graph", "Gradient norm", {"norm": "dapt_trainer_gradient_norm{$of}"}, unit="none"),
            Panel("graph", "Speed", {"tokens/s": "dapt_trainer_tokens_per_second{$of}"}),
            Panel("graph", "Use of the accelerators", {"of peak FLOP/s": "dapt_trainer_mfu_ratio{$of}",
                  "goodput": "dapt_goodput_ratio{$of}"}, unit="percentunit"),
            Panel("graph", "Step and checkpoint", {"step": "dapt_trainer_step_seconds{$of}",
                  "checkpoint": "dapt_trainer_checkpoint_seconds{$of}",
                  "waiting for rows": "dapt_trainer_data_wait_seconds{$of}"}, unit="s"),
            Panel("graph", "Skipped steps and spikes", {"skipped": "dapt_trainer_skipped_steps{$of}",
                  "spikes": "dapt_trainer_loss_spikes{$of}"}, unit="none"),
            Panel("graph", "Tokens", {"written to the status": "dapt_tokens_total{$of}"}),
            Panel("graph", "Restarts", {"{{cause}}": "dapt_restarts_total{$of}"}, unit="none"),
        ),
        "Stages": (
            Panel("graph", "GPU-seconds by stage", {"{{stage}}": "dapt_gpu_seconds_total{$of}",
                  "{{stage}}, running": "dapt_running_gpu_seconds{$of}"}, unit="s"),
            Panel("graph", "Duration", {"{{stage}}": "dapt_stage_duration_seconds{$of}"}, unit="s"),
            Panel("graph", "Waited for nodes", {"{{stage}}": "dapt_stage_waiting_seconds{$of}"}, unit="s"),
        ),
        "Preflight": (
            Panel("stat", "All-reduce", {"": "dapt_preflight_all_reduce_bytes_per_second{$of}"}, unit="Bps", width=4),
            Panel("stat", "Slowest link",
                  {"": "dapt_preflight_point_to_point_bytes_per_second{$of}"}, unit="Bps", width=4),
            Panel("stat", "Volume, write", {"": "dapt_preflight_write_bytes_per_second{$of}"}, unit="Bps", width=4),
            Panel("stat", "Volume, read", {"": "dapt_preflight_read_bytes_per_second{$of}"}, unit="Bps", width=4),
            Panel("stat", "Shared memory", {"": "dapt_preflight_shared_memory_bytes{$of}"}, unit="bytes", width=4),
            Panel("stat", "Clocks differ by", {"": "dapt_preflight_clock_difference_seconds{$of}"}, unit="s", width=2),
            Panel("stat", "Warnings", {"": "dapt_preflight_warnings{$of}"}, width=2),
        ),
    },
    selector='namespace="$namespace",name="$name"',
    variables=(NAMESPACES, ("name", 'label_values(dapt_condition{namespace="$namespace"}, name)')),
)  # fmt: skip

DURATIONS: Final = "sum by (le) (rate(dapt_reconcile_duration_seconds_bucket[$__rate_interval]))"

OPERATOR: Final = Board(
    "dapt-operator",
    "dapt / Operator",
    {
        "Now": (
            Panel("stat", "Acting", {"": "sum(dapt_operator_acting)"}, width=4,
                  description="1: one process holds the Lease, the others wait for it."),
            Panel("stat", "Adaptations that wait for a reconcile", {"": "sum(dapt_work_queue_depth)"}, width=5),
            Panel("stat", "Oldest list", {"": "time() - min(dapt_last_list_timestamp_seconds)"}, unit="s", width=5),
            Panel("stat", "Cannot be read", {"": "sum(dapt_unreadable_adaptations)"}, width=5),
            Panel("stat", "Of other installations",
                  {"{{owner}}": "sum by (owner) (dapt_foreign_adaptations)"}, width=5),
        ),
        "Reconciles": (
            Panel("graph", "Reconciles a second",
                  {"": "sum(rate(dapt_reconcile_duration_seconds_count[$__rate_interval]))"}, unit="reqps"),
            Panel("graph", "Duration", {
                  "half": f"histogram_quantile(0.5, {DURATIONS})",
                  "99 of 100": f"histogram_quantile(0.99, {DURATIONS})",
                  }, unit="s"),
            Panel("graph", "Errors", {"": "sum(increase(dapt_reconcile_errors_total[$__rate_interval]))"}),
        ),
        "Sight": (
            Panel("table", "Lists that fail", {"": "dapt_list_failing"}, width=12),
            Panel("table", "Versions", {"": "dapt_build_info"}, width=12),
            Panel("graph", "Processes", {"{{pod}} acting": "dapt_operator_acting"}, unit="none", width=12),
            Panel("graph", "Queue", {"{{pod}}": "dapt_work_queue_depth"}, width=12),
        ),
    },
)  # fmt: skip

BOARDS: Final = (FLEET, ADAPTATION, OPERATOR)


def render() -> dict[str, str]:
    """Return file name -> JSON of every dashboard. Deterministic; writes nothing."""
    return {f"{board.uid}.json": _json(board) for board in BOARDS}


def main() -> None:
    """Write the dashboards."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in render().items():
        (FOLDER / name).write_text(text)


def _json(board: Board) -> str:
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .tags(["dapt"])
        .refresh("1m")
        .time("now-6h", "now")
        .timezone("browser")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Data source"))
    )
    for name, query in board.variables:
        variable = (
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .query(query)
            .datasource(SOURCE)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(board.has_many)
            .include_all(board.has_many)
        )
        if board.has_many:
            variable = variable.current(VariableOption(selected=True, text="All", value="$__all")).all_value(
                ".*"
            )
        builder = builder.with_variable(variable)
    ids = itertools.count(1)
    for title, panels in board.rows.items():
        builder = builder.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            builder = builder.with_panel(_panel(panel, board.selector).id(next(ids)))
    built = builder.build()
    for item in built.panels or ():
        if isinstance(item, PanelModel):
            item.plugin_version = GRAFANA  # without one Grafana takes the options for those of version 6
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"


def _empty(kind: str) -> AnyPanel:
    """Return a panel with the options of its kind, which Grafana takes for granted."""
    if kind == "stat":
        return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if kind == "table":
        return table.Panel().show_header(True)
    return timeseries.Panel().legend(
        common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    )


def _panel(panel: Panel, selector: str) -> AnyPanel:
    builder = _empty(panel.kind)
    builder = builder.title(panel.title).unit(panel.unit).datasource(SOURCE)
    builder = builder.span(panel.width).height(HEIGHTS[panel.kind])
    if panel.description:
        builder = builder.description(panel.description)
    for number, (legend, expression) in enumerate(panel.queries.items()):
        query = (
            prometheus.Dataquery()
            .expr(expression.replace("$of", selector))
            .legend_format(legend or "__auto")
            .ref_id(chr(ord("A") + number))
        )
        if panel.kind == "table":
            query = query.format(PromQueryFormat.TABLE).instant()
        builder = builder.with_target(query)
    return builder


if __name__ == "__main__":
    main()
