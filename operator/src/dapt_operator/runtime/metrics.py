"""Defines the operator's Prometheus series in one table, from which the reference page is generated too.

Series of an adaptation are computed from each version of the stored resource when it arrives, so they survive a restart
of the operator and end with their object. Only the two about reconciles are counted in the process. The trainer's pods
export their own series (`dapt_trainer_*`); nothing is exported twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.utils import floatToGoString

from dapt_contract.pod.failure import Cause
from dapt_contract.sentences import shortened
from dapt_contract.untrusted.printable import printable
from dapt_operator.api.v1alpha1.conditions import CONDITION_TYPES
from dapt_operator.cluster.kubernetes import Summary
from dapt_operator.runtime.metrics_status import ShownCandidate, ShownLedger, ShownStatus
from dapt_operator.runtime.watching.store_updater import owner_of
from dapt_operator.stage_run import Manifest

log = structlog.get_logger("dapt.metrics")
LABELS: Final = ("name", "namespace")
_MAX_LABEL_CHARACTERS: Final = 253

Value = tuple[str, float]
"""Value of the additional label (empty when the series has none), and the number."""


@dataclass(frozen=True)
class AdaptationSeries:
    """Source of the series of one adaptation."""

    status: ShownStatus
    shown: ShownCandidate | None
    """The selected candidate, else the latest."""

    @property
    def ledger(self) -> ShownLedger:
        """The planner's ledger; empty before the first reconcile."""
        return self.status.ledger or ShownLedger()


@dataclass(frozen=True)
class Series:
    """A series and how it is computed."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    read: Callable[[AdaptationSeries], Iterable[Value]]
    label: str = ""
    """Name of the additional label; empty for none."""


def _single(value: float | int | None) -> Iterable[Value]:
    return () if value is None else (("", float(value)),)


def _gates(adaptation: AdaptationSeries) -> Iterable[Value]:
    return ((gate, float(passed)) for gate, passed in (adaptation.status.gates or {}).items())


def _task_drops(adaptation: AdaptationSeries) -> Iterable[Value]:
    return (adaptation.status.task_drop_points or {}).items()


def _gpu_seconds(adaptation: AdaptationSeries) -> Iterable[Value]:
    closed = adaptation.ledger.closed
    seconds: dict[str, float] = dict(closed.accelerator_seconds) if closed else {}
    for record in adaptation.ledger.runs:
        seconds[record.kind] = seconds.get(record.kind, 0.0) + record.accelerator_seconds
    return seconds.items()


def _restarts(adaptation: AdaptationSeries) -> Iterable[Value]:
    causes: dict[str, float] = {}
    closed = adaptation.ledger.closed
    counts = [(record.failures, record.restarts) for record in adaptation.ledger.runs]
    if closed:
        counts.append((closed.failures, closed.restarts))
    for failures, restarts in counts:
        for budget, number in failures.items():
            cause = budget[:1].upper() + budget[1:]
            causes[cause] = causes.get(cause, 0.0) + number
        # A restart that used no retry budget followed a disruption.
        num_disruptions = max(0, restarts - sum(failures.values()))
        if num_disruptions:
            causes[Cause.DISRUPTION.value] = causes.get(Cause.DISRUPTION.value, 0.0) + num_disruptions
    return causes.items()


def _durations(adaptation: AdaptationSeries) -> Iterable[Value]:
    newest: dict[str, float] = {}
    for record in adaptation.ledger.runs:
        if record.started and record.completed and record.state == "Succeeded":
            newest[record.kind] = _seconds_between(record.started, record.completed)
    return newest.items()


def _seconds_between(start: str, end: str) -> float:
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def _preflight(field: str) -> Callable[[AdaptationSeries], Iterable[Value]]:
    """Return the reader of one number of the preflight."""

    def read_number(adaptation: AdaptationSeries) -> Iterable[Value]:
        measured = adaptation.status.preflight
        return _single(getattr(measured, field) if measured is not None else None)

    return read_number


def _conditions(adaptation: AdaptationSeries) -> Iterable[Value]:
    return ((condition.type, float(condition.status == "True")) for condition in adaptation.status.conditions)


SERIES: Final = (
    Series(
        "dapt_condition",
        "gauge",
        "1 while a condition of the adaptation is True, else 0; Stalled means that user action is required.",
        _conditions,
        label="type",
    ),
    Series(
        "dapt_general_perplexity_increase_ratio",
        "gauge",
        "Forgetting: general perplexity over the base model's, minus 1, of the selected candidate, else the latest.",
        lambda adaptation: _single(adaptation.shown.forgetting if adaptation.shown else None),
    ),
    Series(
        "dapt_domain_perplexity_decrease_ratio",
        "gauge",
        "1 minus domain perplexity over the base model's, of the same candidate.",
        lambda adaptation: _single(adaptation.shown.domain_perplexity_decrease if adaptation.shown else None),
    ),
    Series(
        "dapt_task_drop_points",
        "gauge",
        "Points (hundredths) that the same candidate lost on a general task or probe set; below 0: gained.",
        _task_drops,
        label="task",
    ),
    Series(
        "dapt_gain",
        "gauge",
        "Gain of the same candidate, by which candidates are ranked.",
        lambda adaptation: _single(adaptation.shown.whole_gain if adaptation.shown else None),
    ),
    Series(
        "dapt_gate_passed",
        "gauge",
        "1 when the same candidate passes the gate, else 0.",
        _gates,
        label="gate",
    ),
    Series(
        "dapt_selected_step",
        "gauge",
        "Optimizer step of the selected candidate's checkpoint; absent before the selection.",
        lambda adaptation: _single(
            adaptation.shown.step if adaptation.status.selected and adaptation.shown else None
        ),
    ),
    Series(
        "dapt_progress_ratio",
        "gauge",
        "Share of pretraining's budget that is done.",
        lambda adaptation: _single(
            adaptation.status.progress.fraction if adaptation.status.progress else None
        ),
    ),
    Series(
        "dapt_tokens_total",
        "counter",
        "Training tokens of pretraining that are done, as last written to the status; the pods report them more often.",
        lambda adaptation: _single(adaptation.status.progress.tokens if adaptation.status.progress else None),
    ),
    Series(
        "dapt_gpu_seconds_total",
        "counter",
        "Accelerator-seconds of the runs of a stage that have ended; 0 on CPU.",
        _gpu_seconds,
        label="stage",
    ),
    Series(
        "dapt_goodput_ratio",
        "gauge",
        "Share of pretraining's time on its accelerators that was spent on steps that count.",
        lambda adaptation: _single(adaptation.status.usage.goodput if adaptation.status.usage else None),
    ),
    Series(
        "dapt_restarts_total",
        "counter",
        "Runs lost to faults, by the retry budget that they used; `Disruption` uses none.",
        _restarts,
        label="cause",
    ),
    Series(
        "dapt_rollbacks_total",
        "counter",
        "Rollbacks: attempts of pretraining after the first.",
        lambda adaptation: _single(
            max(0, len(adaptation.status.attempts) - 1) if adaptation.status.attempts else None
        ),
    ),
    Series(
        "dapt_stage_duration_seconds",
        "gauge",
        "Seconds from the first process to the end, of the newest run of a stage that succeeded.",
        _durations,
        label="stage",
    ),
    Series(
        "dapt_preflight_all_reduce_bytes_per_second",
        "gauge",
        "Bus bandwidth of an all-reduce over all ranks, as the newest training stage measured it before it loaded.",
        _preflight("all_reduce_bytes_per_second"),
    ),
    Series(
        "dapt_preflight_point_to_point_bytes_per_second",
        "gauge",
        "Bandwidth of the slowest link between two ranks, in the same preflight.",
        _preflight("point_to_point_bytes_per_second"),
    ),
    Series(
        "dapt_preflight_shared_memory_bytes",
        "gauge",
        "Size of /dev/shm on the node that has the least, in the same preflight.",
        _preflight("shared_memory_bytes"),
    ),
    Series(
        "dapt_preflight_write_bytes_per_second",
        "gauge",
        "Speed at which the slowest node writes to the work volume, in the same preflight.",
        _preflight("write_bytes_per_second"),
    ),
    Series(
        "dapt_preflight_read_bytes_per_second",
        "gauge",
        "Speed at which the slowest node reads from the work volume, in the same preflight.",
        _preflight("read_bytes_per_second"),
    ),
    Series(
        "dapt_preflight_clock_difference_seconds",
        "gauge",
        "Largest difference between the clocks of two nodes, in the same preflight.",
        _preflight("clock_difference_seconds"),
    ),
    Series(
        "dapt_preflight_warnings",
        "gauge",
        "Warnings of the same preflight; `status.preflight.warnings` has their text.",
        lambda adaptation: _single(
            len(adaptation.status.preflight.warnings) if adaptation.status.preflight else None
        ),
    ),
)
"""Series of each adaptation."""

RECONCILE_DURATION: Final = (
    "dapt_reconcile_duration_seconds",
    "Seconds that one reconcile of an adaptation took, with the requests that it sent.",
)
RECONCILE_ERRORS: Final = (
    "dapt_reconcile_errors_total",
    "Reconciles that ended in an error and are repeated; the log has the error.",
)
BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def read(resource: Manifest) -> list[list[Value]]:
    """Return the values of each series.

    Raises:
        ValueError: the status is not valid.
    """
    status = ShownStatus.model_validate(resource.get("status") or {})
    selected = status.selected.id if status.selected else None
    shown = next((candidate for candidate in status.candidates if candidate.id == selected), None)
    if shown is None and status.candidates:
        shown = status.candidates[-1]
    adaptation = AdaptationSeries(status, shown)
    return [list(series.read(adaptation)) for series in SERIES]


def summarize(resource: Manifest) -> Summary:
    """Return the samples of one version of a resource; of one that cannot be read, its conditions alone."""
    owner = owner_of(resource)
    try:
        return Summary(_sample_lines(resource, read(resource)), owner)
    except Exception as error:
        # Of any kind: a scrape serves every adaptation, and must not fail for one.
        log.warning(
            "an adaptation has no metrics: it cannot be read",
            namespace=resource["metadata"].get("namespace"),
            name=resource["metadata"].get("name"),
            error=shortened(f"{type(error).__name__}: {' '.join(str(error).split())}", 300),
        )
        values: list[list[Value]] = [
            list(_raw_conditions(resource)) if series.read is _conditions else [] for series in SERIES
        ]
        return Summary(_sample_lines(resource, values), owner, is_readable=False)


def _raw_conditions(resource: Manifest) -> Iterator[Value]:
    """Yield the conditions of a status that is not valid, so that alerts on Stalled fire all the same."""
    status = resource.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    for item in conditions if isinstance(conditions, list) else ():
        # As a text: of a value that is none it may be impossible to say whether it is in a set.
        if isinstance(item, dict) and (type_ := str(item.get("type"))) in CONDITION_TYPES:
            yield type_, float(item.get("status") == "True")


def _sample_lines(resource: Manifest, values: Iterable[Iterable[Value]]) -> tuple[str, ...]:
    """Return the lines of each series, in Prometheus' text format; empty where the resource has no value."""
    metadata = resource["metadata"]
    labels = ",".join(f'{name}="{_quoted(str(metadata.get(name, "")))}"' for name in LABELS)
    return tuple(
        "".join(
            f"{series.name}{{{_with_label(labels, series.label, label)}}} {floatToGoString(value)}\n"
            for label, value in series_values
        )
        for series, series_values in zip(SERIES, values, strict=True)
    )


def _with_label(labels: str, name: str, value: str) -> str:
    """Return the labels with one more, in the order of their names."""
    if not name:
        return labels
    label = f'{name}="{_quoted(value)}"'
    return f"{label},{labels}" if name < LABELS[0] else f"{labels},{label}"


def _quoted(text: str) -> str:
    return label_value(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def label_value(text: str) -> str:
    """Return a text as the value of a label: one short line that can be written as UTF-8."""
    return shortened(printable(text), _MAX_LABEL_CHARACTERS)


def exposition(summaries: Iterable[Summary]) -> bytes:
    """Return the series of all adaptations in Prometheus' text format.

    The lines come as they were made when each resource arrived: a thousand grown adaptations have 40,000 lines, and the
    reconciles wait while they are made.
    """
    all_lines = [summary.samples for summary in summaries]
    families = (
        f"# HELP {series.name} {series.help}\n# TYPE {series.name} {series.kind}\n"
        + "".join(lines[place] for lines in all_lines)
        for place, series in enumerate(SERIES)
    )
    return "".join(families).encode()


class ReconcileMetrics:
    """Counts the reconciles of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.duration = Histogram(*RECONCILE_DURATION, buckets=BUCKETS, registry=registry)
        self.errors = Counter(*RECONCILE_ERRORS, registry=registry)
