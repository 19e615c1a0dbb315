"""The operator's Prometheus series: one table, which the reference page is made of too.

Series of an adaptation are read from the stored resource when Prometheus asks, so they survive a restart of the
operator and go with their object. Only the two about reconciling are counted in the process. The trainer's pods
export their own series (`dapt_trainer_*`); nothing is exported twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from pydantic import ValidationError

from dapt_contract.failure import Cause
from dapt_operator.api.v1alpha1.base import SKIP_RULES
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.status import CandidateStatus, DomainAdaptationStatus
from dapt_operator.plan.ledger.stage_facts import read_facts
from dapt_operator.plan.selection.candidates import Candidate, candidates
from dapt_operator.stage_run import Manifest

LABELS: Final = ("namespace", "name")

Value = tuple[str, float]
"""Value of the additional label, empty when the series has none; the number."""


@dataclass(frozen=True)
class AdaptationSeries:
    """What one adaptation's series are made of."""

    status: DomainAdaptationStatus
    shown: CandidateStatus | None
    """The selected candidate, else the latest."""
    judged: Candidate | None
    """The same one with its verdicts."""

    @property
    def ledger(self) -> Ledger:
        """The planner's memory; empty before the first visit."""
        return self.status.ledger or Ledger()


@dataclass(frozen=True)
class Series:
    """One line of the table."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    read: Callable[[AdaptationSeries], Iterable[Value]]
    label: str = ""
    """An additional one."""


def _one(value: float | int | None) -> Iterable[Value]:
    return () if value is None else (("", float(value)),)


def _gates(known: AdaptationSeries) -> Iterable[Value]:
    gates: dict[str, bool] = {}
    for verdict in known.judged.verdicts if known.judged else ():
        gates[verdict.gate] = gates.get(verdict.gate, True) and verdict.passed
    return ((gate, float(passed)) for gate, passed in gates.items())


def _task_drops(known: AdaptationSeries) -> Iterable[Value]:
    if known.judged is None:
        return ()
    scores = known.judged.measure.of_side("general")
    return ((score.name, -100.0 * score.difference) for score in scores if score.difference is not None)


def _gpu_seconds(known: AdaptationSeries) -> Iterable[Value]:
    closed = known.ledger.closed
    seconds: dict[str, float] = dict(closed.accelerator_seconds) if closed else {}
    for record in known.ledger.runs:
        seconds[record.kind] = seconds.get(record.kind, 0.0) + record.accelerator_seconds
    return seconds.items()


def _restarts(known: AdaptationSeries) -> Iterable[Value]:
    causes: dict[str, float] = {}
    closed = known.ledger.closed
    told = [(record.failures, record.restarts) for record in known.ledger.runs]
    for failures, restarts in (*told, *([(closed.failures, closed.restarts)] if closed else [])):
        counted = 0
        for budget, number in failures.items():
            cause = budget[:1].upper() + budget[1:]
            causes[cause] = causes.get(cause, 0.0) + number
            counted += number
        free = max(0, restarts - counted)
        if free:
            causes[Cause.DISRUPTION.value] = causes.get(Cause.DISRUPTION.value, 0.0) + free
    return causes.items()


def _durations(known: AdaptationSeries) -> Iterable[Value]:
    newest: dict[str, RunRecord] = {}
    for record in known.ledger.runs:
        if record.started and record.completed and record.state == "Succeeded":
            newest[record.kind] = record
    return ((kind, _seconds(record)) for kind, record in newest.items())


def _seconds(record: RunRecord) -> float:
    assert record.started is not None
    assert record.completed is not None
    begun, ended = datetime.fromisoformat(record.started), datetime.fromisoformat(record.completed)
    return max(0.0, (ended - begun).total_seconds())


def _conditions(known: AdaptationSeries) -> Iterable[Value]:
    return ((condition.type, float(condition.status == "True")) for condition in known.status.conditions)


TABLE: Final = (
    Series(
        "dapt_condition",
        "gauge",
        "1 while a condition of the adaptation is True, else 0; Stalled is the one that waits for a person.",
        _conditions,
        label="type",
    ),
    Series(
        "dapt_general_perplexity_increase_ratio",
        "gauge",
        "Forgetting: general perplexity over the base model's, minus 1, of the selected candidate, else the latest.",
        lambda known: _one(known.shown.forgetting if known.shown else None),
    ),
    Series(
        "dapt_domain_perplexity_decrease_ratio",
        "gauge",
        "1 minus domain perplexity over the base model's, of the same candidate.",
        lambda known: _one(known.shown.domain_perplexity_decrease if known.shown else None),
    ),
    Series(
        "dapt_task_drop_points",
        "gauge",
        "Points (hundredths) that the same candidate lost on a general task or probe set; below 0: won.",
        _task_drops,
        label="task",
    ),
    Series(
        "dapt_gain",
        "gauge",
        "Gain of the same candidate, by which candidates are ranked.",
        lambda known: _one(known.shown.gain if known.shown else None),
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
        lambda known: _one(known.shown.step if known.status.selected and known.shown else None),
    ),
    Series(
        "dapt_progress_ratio",
        "gauge",
        "Share of pretraining's budget that is done.",
        lambda known: _one(known.status.progress.fraction if known.status.progress else None),
    ),
    Series(
        "dapt_tokens_total",
        "counter",
        "Training tokens of pretraining that are done, as last written to the status; the pods tell finer.",
        lambda known: _one(known.status.progress.tokens if known.status.progress else None),
    ),
    Series(
        "dapt_gpu_seconds_total",
        "counter",
        "Accelerator-seconds of the tries of a stage that have ended; 0 on CPU.",
        _gpu_seconds,
        label="stage",
    ),
    Series(
        "dapt_goodput_ratio",
        "gauge",
        "Share of pretraining's time on its accelerators that went into steps that count.",
        lambda known: _one(known.status.usage.goodput if known.status.usage else None),
    ),
    Series(
        "dapt_restarts_total",
        "counter",
        "Tries lost to faults, by the budget of retries that they were taken from; `Disruption` costs none.",
        _restarts,
        label="cause",
    ),
    Series(
        "dapt_rollbacks_total",
        "counter",
        "Rollbacks: attempts of pretraining after the first.",
        lambda known: _one(max(0, len(known.status.attempts) - 1) if known.status.attempts else None),
    ),
    Series(
        "dapt_stage_duration_seconds",
        "gauge",
        "Seconds from the first process to the end of the last try, of the newest run of a stage that succeeded.",
        _durations,
        label="stage",
    ),
)
"""Of each adaptation."""

RECONCILE_DURATION: Final = (
    "dapt_reconcile_duration_seconds",
    "Seconds that one look at an adaptation took, with the requests that it made.",
)
RECONCILE_ERRORS: Final = (
    "dapt_reconcile_errors_total",
    "Looks that ended in an error and are repeated; the log has the error.",
)
BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Adaptations:
    """Reads the table's series from the stored resources at each scrape."""

    def __init__(self, resources: Callable[[], Iterable[Manifest]]) -> None:
        self._resources = resources
        self._kept: dict[str, tuple[str, list[list[Value]]]] = {}

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """One family a line of the table, with a sample for each adaptation that has a value."""
        families = [_family(series) for series in TABLE]
        kept: dict[str, tuple[str, list[list[Value]]]] = {}
        for resource in self._resources():
            metadata = resource["metadata"]
            uid, version = str(metadata.get("uid", "")), str(metadata.get("resourceVersion", ""))
            before = self._kept.get(uid)
            values = before[1] if before is not None and before[0] == version else read(resource)
            kept[uid] = (version, values)
            names = [str(metadata.get("namespace", "")), str(metadata.get("name", ""))]
            for series, family, found in zip(TABLE, families, values, strict=True):
                for label, value in found:
                    family.add_metric([*names, label] if series.label else names, value)
        self._kept = kept
        yield from families

    def describe(self) -> Iterator[Any]:
        """The families without samples, so that registering reads nothing."""
        return iter([_family(series) for series in TABLE])


def _family(series: Series) -> Any:
    labels = [*LABELS, series.label] if series.label else list(LABELS)
    kind = GaugeMetricFamily if series.kind == "gauge" else CounterMetricFamily
    return kind(series.name, series.help, labels=labels)


def read(resource: Manifest) -> list[list[Value]]:
    """Values of each line of the table. A status that is not one of ours has none."""
    try:
        status = DomainAdaptationStatus.model_validate(resource.get("status") or {})
    except ValidationError:
        return [[] for _ in TABLE]
    wanted = status.selected.id if status.selected else None
    shown = next((one for one in status.candidates if one.id == wanted), None)
    if shown is None and status.candidates:
        shown = status.candidates[-1]
    known = AdaptationSeries(status, shown, _judged(resource, status, shown))
    return [list(series.read(known)) for series in TABLE]


def _judged(
    resource: Manifest, status: DomainAdaptationStatus, shown: CandidateStatus | None
) -> Candidate | None:
    if shown is None or status.ledger is None:
        return None
    try:
        spec = DomainAdaptationSpec.model_validate(resource.get("spec"), context={SKIP_RULES: True})
    except ValidationError:
        return None
    found = candidates(spec, read_facts(status.ledger))
    return next((one for one in found if one.id == shown.id), None)


class Meter:
    """What the process counts about its own work."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.duration = Histogram(*RECONCILE_DURATION, buckets=BUCKETS, registry=registry)
        self.errors = Counter(*RECONCILE_ERRORS, registry=registry)
