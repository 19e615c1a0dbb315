"""Tests the metrics of an adaptation, read from the status that a run in memory stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.api.v1alpha1 import status
from dapt_operator.api.v1alpha1.stored.ledger import ClosedRuns, Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.cluster.kubernetes import Store, Summary
from dapt_operator.cluster.kubernetes.resync import FailedList
from dapt_operator.runtime import metrics, metrics_reference
from dapt_operator.runtime.operator_metrics import (
    OPERATOR_GAUGES,
    PROCESS_GAUGES,
    OperatorCollector,
    ProcessCollector,
    ProcessState,
)
from dapt_operator.runtime.series import shown_status
from dapt_operator.runtime.series.table import SERIES, AdaptationSeries, Value
from dapt_operator.stage_run import Manifest
from dapt_operator.testing.objects import Ends, Stays
from dapt_trainer.pod.progress import METRICS, RANK_LABELS, RANK_METRICS
from support.builders import healthy
from support.hostile_texts import HOSTILE_TEXTS, assert_inert
from support.worlds import World

ROOT = Path(__file__).parents[2]


def scrape(*resources: Manifest) -> dict[str, float]:
    """Samples by name and labels, as Prometheus would read them."""
    return samples(metrics.exposition(map(metrics.summarize, resources)))


def samples(page: bytes) -> dict[str, float]:
    families = list(text_string_to_metric_families(page.decode()))
    assert len({family.name for family in families}) == len(families), "a family is written once"
    return {
        name: float(value)
        for name, _, value in (
            line.rpartition(" ") for line in page.decode().splitlines() if not line.startswith("#")
        )
    }


def scrape_all(*resources: Manifest, failed: Sequence[FailedList] = ()) -> dict[str, float]:
    """The same with what the operator itself exports."""
    summaries = [metrics.summarize(resource) for resource in resources]
    registry = CollectorRegistry()
    registry.register(OperatorCollector(lambda: summaries, "team/dapt", lambda: failed))
    return samples(generate_latest(registry) + metrics.exposition(summaries))


def stored(world: World) -> dict[str, Any]:
    resource = world.cluster.observe(world.key).resource
    assert resource is not None
    return dict(resource)


OF = 'name="clinical",namespace="health"'


def test_published_adaptation_exports_every_metric() -> None:
    world = World()
    world.live()
    found = scrape(stored(world))
    assert found[f"dapt_general_perplexity_increase_ratio{{{OF}}}"] == pytest.approx(0.05, abs=1e-5)
    assert found[f"dapt_domain_perplexity_decrease_ratio{{{OF}}}"] == pytest.approx(0.32968, abs=1e-4)
    assert found[f'dapt_task_drop_points{{{OF},task="general"}}'] == 0.0
    assert found[f"dapt_gain{{{OF}}}"] == stored(world)["status"]["gain"] == pytest.approx(0.6, abs=1e-4)
    for gate in ("generalPerplexity", "generalScoreDrop", "domainGain"):
        assert found[f'dapt_gate_passed{{gate="{gate}",{OF}}}'] == 1.0
    assert found[f"dapt_selected_step{{{OF}}}"] == 40.0
    assert found[f"dapt_rollbacks_total{{{OF}}}"] == 0.0
    assert found[f'dapt_gpu_seconds_total{{{OF},stage="pretrain"}}'] > 0.0
    stages = {key for key in found if key.startswith("dapt_stage_duration_seconds")}
    assert stages == {
        f'dapt_stage_duration_seconds{{{OF},stage="{stage}"}}'
        for stage in (
            "destination",
            "prepare",
            "baseline",
            "pretrain",
            "evaluate",
            "finetune",
            "verify",
            "publish",
        )
    }
    assert not any(key.startswith("dapt_restarts_total") for key in found)
    conditions = {key: value for key, value in found.items() if key.startswith("dapt_condition")}
    assert {key for key, value in conditions.items() if value} == {
        f'dapt_condition{{{OF},type="{type_}"}}' for type_ in ("Accepted", "Ready", "GatesPassed", "Finished")
    }
    assert len(conditions) == 8


def test_restart_metrics_are_labelled_by_cause() -> None:
    fallen: list[str] = []

    def falls(stage: StageFile) -> Ends | Stays:
        ends = {
            "pretrain": Ends(70, message="CUDA out of memory", cause=Cause.OUT_OF_MEMORY),
            "baseline": Ends(143, message="asked to stop", disrupted=True),
        }
        if stage.kind in ends and stage.kind not in fallen:
            fallen.append(stage.kind)
            return ends[stage.kind]
        return healthy(stage)

    world = World()
    world.live(falls)
    found = scrape(stored(world))
    assert found[f'dapt_restarts_total{{cause="OutOfMemory",{OF}}}'] == 1.0
    assert found[f'dapt_restarts_total{{cause="Disruption",{OF}}}'] == 1.0


def test_page_is_the_one_that_the_client_library_writes() -> None:
    world = World()
    world.live()
    resource = stored(world)
    values = metrics.read(resource)
    registry = CollectorRegistry()
    registry.register(library_collector(values))
    assert metrics.exposition([metrics.summarize(resource)]) == generate_latest(registry)


def library_collector(values: list[list[Value]]) -> Any:
    """The same values of the adaptation health/clinical as families of the client library."""

    class Families:
        def collect(self) -> Iterator[Any]:
            for series, series_values in zip(SERIES, values, strict=True):
                kind = GaugeMetricFamily if series.kind == "gauge" else CounterMetricFamily
                names = [*metrics.LABELS, series.label] if series.label else list(metrics.LABELS)
                family = kind(series.name, series.help, labels=names)
                for label, value in series_values:
                    family.add_metric(["clinical", "health", label][: len(names)], value)
                yield family

    return Families()


def test_values_are_those_of_the_whole_status() -> None:
    """Metrics read a part of the status: it is defined a second time, and must say the same."""
    world = World()
    world.live()
    resource = stored(world)
    stored_status = status.DomainAdaptationStatus.model_validate(resource["status"])
    selected = stored_status.selected
    shown = next(item for item in stored_status.candidates if selected and item.id == selected.id)
    whole: Any = AdaptationSeries(cast(Any, stored_status), cast(Any, shown))
    assert metrics.read(resource) == [list(series.read(whole)) for series in SERIES]


@pytest.mark.parametrize(
    ("shown", "whole"),
    [
        (shown_status.ShownStatus, status.DomainAdaptationStatus),
        (shown_status.ShownCondition, status.Condition),
        (shown_status.ShownCandidate, status.CandidateStatus),
        (shown_status.ShownSelection, status.SelectedStatus),
        (shown_status.ShownProgress, status.ProgressStatus),
        (shown_status.ShownUsage, status.Usage),
        (shown_status.ShownRun, RunRecord),
        (shown_status.ShownClosedRuns, ClosedRuns),
        (shown_status.ShownLedger, Ledger),
    ],
)
def test_fields_that_metrics_read_are_those_of_the_status(
    shown: type[BaseModel], whole: type[BaseModel]
) -> None:
    for name, field in shown.model_fields.items():
        default = whole.model_fields[name].get_default(call_default_factory=True)
        assert field.is_required() or field.get_default(call_default_factory=True) == default


def test_scrape_reads_no_status(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.live()
    resource = stored(world)
    versions: list[str] = []

    def counted(of: Manifest) -> Summary:
        versions.append(of["metadata"]["resourceVersion"])
        return metrics.summarize(of)

    store = Store(counted)
    for version in ("7", "7", "8"):
        store.put({**resource, "metadata": dict(resource["metadata"]) | {"resourceVersion": version}})
    assert versions == ["7", "8"], "each version once"

    # Of a thousand grown ones a scrape that reads their JSON, or makes their lines, takes seconds in a busy process.
    for module, name in ((json, "loads"), (metrics, "read"), (metrics, "floatToGoString")):
        monkeypatch.delattr(module, name)
    page = metrics.exposition(store.summaries()).decode()
    assert f"dapt_selected_step{{{OF}}} 40.0" in page.splitlines()


def test_series_end_with_their_object() -> None:
    world = World()
    world.live()
    resource = stored(world)
    store = Store(metrics.summarize)
    store.put(resource)
    assert len(samples(metrics.exposition(store.summaries()))) > 10
    store.remove(resource)
    assert samples(metrics.exposition(store.summaries())) == {}


@pytest.mark.parametrize(
    "resource",
    [
        {"metadata": {"name": "new", "namespace": "a", "uid": "1", "resourceVersion": "1"}, "spec": {}},
        {"metadata": {"name": "odd", "namespace": "a"}, "status": {"candidates": [{"id": 7}]}},
        {
            "metadata": {"name": "odd", "namespace": "a"},
            "spec": {"corpus": 3},
            "status": {"candidates": [{"id": "a1-s1"}], "ledger": {}},
        },
    ],
    ids=["not looked at yet", "a status that is not ours", "a spec that cannot be read"],
)
def test_a_resource_without_numbers_has_no_series_and_harms_no_other(resource: dict[str, Any]) -> None:
    world = World()
    world.live()
    whole = stored(world)
    assert scrape(resource) == {}
    assert scrape(resource, whole) == scrape(whole)


def test_object_that_cannot_be_read_is_counted_and_keeps_its_conditions() -> None:
    world = World()
    world.live()
    stalled = {"type": "Stalled", "status": "True"}
    broken = {
        "kind": "DomainAdaptation",
        "metadata": {"name": "odd", "namespace": "a", "uid": "odd", "resourceVersion": "1"},
        "status": {"ledger": {"runs": "odd"}, "conditions": [stalled, 7, {"type": ["Ready"]}]},
    }
    found = scrape_all(broken, stored(world))
    assert found["dapt_unreadable_adaptations"] == 1.0
    assert found['dapt_condition{name="odd",namespace="a",type="Stalled"}'] == 1.0
    assert found[f"dapt_selected_step{{{OF}}}"] == 40.0


def test_adaptations_of_other_installations_are_counted() -> None:
    resources = [
        {
            "kind": "DomainAdaptation",
            "metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": "1"},
            "status": {"digests": {"owner": owner}},
        }
        for name, owner in (("ours", "team/dapt"), ("one", "else/dapt"), ("two", "else/dapt"))
    ]
    found = scrape_all(*resources)
    assert {key: value for key, value in found.items() if "foreign" in key} == {
        'dapt_foreign_adaptations{owner="else/dapt"}': 2.0
    }


def test_list_that_fails_is_exported() -> None:
    failed = FailedList("Pod", "finance", "403 Forbidden", is_unreachable=False)
    assert scrape_all(failed=[failed])['dapt_list_failing{kind="Pod",namespace="finance"}'] == 1.0


def test_every_stage_says_how_far_it_is_while_it_runs() -> None:
    world = World()
    world.live_until("prepare")
    world.settle()
    reading = Progress(
        run_key=world.runs[-1].run.key,
        stage="prepare",
        activity="tokenizing domain[0]",
        fraction=0.25,
        eta_seconds=90.0,
    )
    world.cluster.run_pods(world.key, lambda _: Stays(progress=reading))
    world.settle()
    resource = stored(world)
    stage = resource["status"]["stages"][-1]
    assert stage["progress"]["activity"] == "tokenizing domain[0]"
    assert (stage["progress"]["fraction"], stage["progress"]["etaSeconds"]) == (0.25, 90.0)
    assert "progress" not in resource["status"]
    found = scrape(resource)
    assert found[f'dapt_stage_progress_ratio{{{OF},stage="prepare"}}'] == 0.25
    assert found[f'dapt_stage_eta_seconds{{{OF},stage="prepare"}}'] == 90.0
    world.cluster.advance(5.0)
    soon = reading.model_copy(update={"fraction": 0.5})
    world.cluster.run_pods(world.key, lambda _: Stays(progress=soon))
    world.settle()
    assert stored(world)["status"]["stages"][-1]["progress"] == stage["progress"], "not yet ten seconds old"
    world.live_until("baseline")
    assert not any("progress" in found for found in stored(world)["status"]["stages"])


def training_world() -> World:
    """A world whose pretraining is about to start, on accelerators at a price."""
    world = World(offered={"accelerator": {"pricePerHour": 2.0}})
    world.live_until("pretrain")
    world.settle()
    return world


def progress_script(stage: StageFile) -> Ends | Stays:
    reading = Progress(run_key=stage.run.key, stage="pretrain", fraction=0.25, step=10, eta_seconds=60.0)
    return Stays(progress=reading) if stage.kind == "pretrain" else Stays()


def test_a_run_that_waits_says_since_when() -> None:
    world = training_world()
    found = scrape(stored(world))
    (record,) = (run for run in stored(world)["status"]["ledger"]["runs"] if run["stage"] == "pretrain")
    created = datetime.fromisoformat(record["created"]).timestamp()
    assert found[f"dapt_waiting_since_timestamp_seconds{{{OF}}}"] == created
    assert found[f'dapt_phase{{{OF},phase="Pretraining"}}'] == 1.0
    assert found[f'dapt_reason{{{OF},reason="StageStarting"}}'] == 1.0
    assert f"dapt_progress_timestamp_seconds{{{OF}}}" not in found


def test_a_run_that_trains_says_what_is_left_and_what_it_holds_and_costs() -> None:
    world = training_world()
    world.cluster.run_pods(world.key, progress_script)
    world.settle()
    world.cluster.advance(1800.0)
    reading = Progress(
        run_key=world.runs[-1].run.key, stage="pretrain", fraction=0.5, step=20, eta_seconds=30.0
    )
    world.cluster.run_pods(world.key, lambda _: Stays(progress=reading))
    world.settle()
    resource = stored(world)
    found = scrape(resource)
    assert found[f"dapt_eta_seconds{{{OF}}}"] == 30.0
    assert found[f'dapt_stage_progress_ratio{{{OF},stage="pretrain"}}'] == 0.5
    assert found[f'dapt_running_accelerators{{{OF},stage="pretrain"}}'] == 2.0
    assert found[f'dapt_running_gpu_seconds{{{OF},stage="pretrain"}}'] >= 3600.0
    progress_time = datetime.fromisoformat(resource["status"]["ledger"]["progressTime"]).timestamp()
    assert found[f"dapt_progress_timestamp_seconds{{{OF}}}"] == progress_time
    usage = resource["status"]["usage"]
    assert found[f"dapt_cost{{{OF}}}"] == usage["cost"] == pytest.approx(usage["gpuHours"] * 2, abs=0.01)
    assert usage["cost"] > 1.0
    assert f"dapt_waiting_since_timestamp_seconds{{{OF}}}" not in found

    world.edit(suspend=True)
    world.live()
    found = scrape(stored(world))
    assert f"dapt_progress_timestamp_seconds{{{OF}}}" not in found
    assert found[f'dapt_reason{{{OF},reason="SuspendedByUser"}}'] == 1.0


def test_the_process_says_whether_it_acts() -> None:
    def page(*, acting: bool, last_list: float | None) -> dict[str, float]:
        registry = CollectorRegistry()
        registry.register(ProcessCollector(ProcessState(lambda: acting, lambda: 3, lambda: last_list)))
        return samples(generate_latest(registry))

    build = f'dapt_build_info{{version="{PRODUCT_VERSION}"}}'
    assert page(acting=False, last_list=None) == {
        build: 1.0,
        "dapt_operator_acting": 0.0,
        "dapt_work_queue_depth": 3.0,
    }
    assert page(acting=True, last_list=1.7e9).items() >= {
        ("dapt_operator_acting", 1.0),
        ("dapt_last_list_timestamp_seconds", 1.7e9),
    }


def test_names_follow_the_conventions_and_each_series_has_one_exporter() -> None:
    names = [series.name for series in SERIES]
    names += [metrics.RECONCILE_DURATION[0], metrics.RECONCILE_ERRORS[0]]
    names += [name for name, _, _ in (*OPERATOR_GAUGES, *PROCESS_GAUGES)]
    names += [f"dapt_trainer_{name}" for name in (*METRICS, *RANK_METRICS)]
    assert len(set(names)) == len(names)
    for series in SERIES:
        assert series.name.endswith("_total") is (series.kind == "counter")
        assert series.help.endswith(".")


def test_the_reference_page_is_current() -> None:
    page = ROOT / "docs" / "reference" / metrics_reference.PAGE
    assert page.read_text() == metrics_reference.page(METRICS, RANK_METRICS, RANK_LABELS), "run `make crds`"


def test_hostile_labels_are_cleaned_and_no_page_breaks() -> None:
    resources = [
        {
            "metadata": {"namespace": text, "name": text, "uid": str(number)},
            "status": {
                "gates": {text: True},
                "candidates": [{"id": "a1-s1", "forgetting": 0.5}],
                "taskDropPoints": {text * 100: 1.0},
                "digests": {"owner": text},
                "conditions": [
                    {
                        "type": text[:200],
                        "status": "True",
                        "reason": "R",
                        "lastTransitionTime": "2026-01-31T12:00:00Z",
                    }
                ],
            },
        }
        for number, text in enumerate(HOSTILE_TEXTS)
    ]
    samples = scrape_all(*resources, failed=[FailedList("pods", text, "no", False) for text in HOSTILE_TEXTS])
    for name in samples:
        assert_inert(name)
        assert len(name) < 1200
    assert sum(name.startswith("dapt_gate_passed") for name in samples) > 10


def hostile_names(number: int) -> list[str]:
    shapes = [
        '{}"',
        "{}\n",
        "\u202e{}",
        "{}\\",
        "a" * 300 + "{}",
        "\ud83d{}",
        "{}\x1b[2J",
        '"}} 1\nevil{{a="{}"}} 1',
    ]
    return [shapes[i % len(shapes)].format(i) for i in range(number)]


def test_thousands_of_hostile_labels_are_one_page_of_distinct_samples() -> None:
    names = hostile_names(5_000)
    resources = [
        {
            "metadata": {"namespace": "n", "name": f"a{first}", "uid": str(first)},
            "status": {
                "phase": names[first],
                "taskDropPoints": dict.fromkeys(names[first : first + 100], 1.0),
                "stages": [
                    {"kind": name, "state": "Running", "progress": {"fraction": 0.5, "etaSeconds": 1}}
                    for name in names[first : first + 30]
                ],
                "ledger": {"closed": {"failures": dict.fromkeys(names[first : first + 64], 1)}},
            },
        }
        for first in range(0, 5_000, 100)
    ]
    summaries = [metrics.summarize(resource) for resource in resources]
    assert all(summary.is_readable for summary in summaries)
    lines = metrics.exposition(summaries).decode().splitlines()
    names_and_labels = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(set(names_and_labels)) == len(names_and_labels) > 5_000
    assert all(line.startswith(("dapt_", "# ")) for line in lines)
    families = list(text_string_to_metric_families("\n".join(lines) + "\n"))
    assert sum(len(family.samples) for family in families) == len(names_and_labels)


@pytest.mark.parametrize(
    "status",
    [
        {"ledger": {"closed": {"failures": {str(number): 1 for number in range(65)}}}},
        {"ledger": {"closed": {"acceleratorSeconds": {str(number): 1 for number in range(10_000)}}}},
        {"ledger": {"runs": [{"kind": "pretrain", "failures": {str(number): 1 for number in range(1_000)}}]}},
        {"taskDropPoints": {"task": 10**400}},
        {"taskDropPoints": {str(number): 1 for number in range(101)}},
        {"progress": {"fraction": 10**400}},
        {"stages": [{"kind": "a"}] * 100_000},
        {"gates": {str(number): True for number in range(17)}},
    ],
    ids=range(8),
)
def test_numbers_and_lists_without_end_cost_the_object_its_own_series_alone(status: dict[str, Any]) -> None:
    summary = metrics.summarize({"metadata": {"namespace": "n", "name": "a", "uid": "1"}, "status": status})
    assert not summary.is_readable
    assert not any(summary.samples)
