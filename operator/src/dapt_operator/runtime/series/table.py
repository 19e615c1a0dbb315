"""Defines the series of an adaptation in one table, each with the function that reads it from the status.

The reference page is generated from the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from dapt_contract.pod.failure import Cause
from dapt_operator.api.v1alpha1.conditions import FINISHED, RECONCILING, STALLED, SUSPENDED
from dapt_operator.runtime.series.shown_status import ShownCandidate, ShownLedger, ShownRun, ShownStatus
from dapt_operator.runtime.series.stage_progress import least_progress, most_seconds_left

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

    @property
    def running(self) -> list[ShownRun]:
        """Records whose newest run has started and is not known to have ended."""
        return [run for run in self.ledger.runs if run.state == "Open" and run.started]


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


def _running_gpu_seconds(adaptation: AdaptationSeries) -> Iterable[Value]:
    seconds: dict[str, float] = {}
    for record in adaptation.running:
        so_far = (record.accelerators or 0) * (record.ran_seconds or 0.0)
        seconds[record.kind] = seconds.get(record.kind, 0.0) + so_far
    return seconds.items()


def _running_accelerators(adaptation: AdaptationSeries) -> Iterable[Value]:
    numbers: dict[str, float] = {}
    for record in adaptation.running:
        numbers[record.kind] = numbers.get(record.kind, 0.0) + (record.accelerators or 0)
    return numbers.items()


def _waiting_since(adaptation: AdaptationSeries) -> Iterable[Value]:
    open_runs = [record for record in adaptation.ledger.runs if record.state == "Open"]
    created = [record.created for record in open_runs if record.created and not record.started]
    return _single(min(map(_unix_time, created), default=None))


def _waited(adaptation: AdaptationSeries) -> Iterable[Value]:
    newest: dict[str, float] = {}
    for record in adaptation.ledger.runs:
        if record.created and record.started:
            newest[record.kind] = _seconds_between(record.created, record.started)
    return newest.items()


def _progress_time(adaptation: AdaptationSeries) -> Iterable[Value]:
    """Yield the later of two times: progress before the newest start says nothing about this run."""
    starts = [run.started for run in adaptation.running if run.kind == "pretrain" and run.started]
    if not starts:
        return ()
    return _single(max(map(_unix_time, [*starts, adaptation.ledger.progress_time or starts[0]])))


def _unix_time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _phase(adaptation: AdaptationSeries) -> Iterable[Value]:
    phase = adaptation.status.phase
    return ((phase, 1.0),) if phase else ()


def _reason(adaptation: AdaptationSeries) -> Iterable[Value]:
    """Yield the reason of the first condition that says how the adaptation stands."""
    conditions = {condition.type: condition for condition in adaptation.status.conditions}
    for type_ in (STALLED, SUSPENDED, FINISHED, RECONCILING):
        condition = conditions.get(type_)
        if condition is not None and condition.status == "True" and condition.reason:
            return ((condition.reason, 1.0),)
    return ()


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


def read_conditions(adaptation: AdaptationSeries) -> Iterable[Value]:
    return ((condition.type, float(condition.status == "True")) for condition in adaptation.status.conditions)


SERIES: Final = (
    Series(
        "dapt_condition",
        "gauge",
        "1 while a condition of the adaptation is True, else 0; Stalled means that user action is required.",
        read_conditions,
        label="type",
    ),
    Series(
        "dapt_phase",
        "gauge",
        "1 for the phase that the adaptation is in.",
        _phase,
        label="phase",
    ),
    Series(
        "dapt_reason",
        "gauge",
        "1 for the reason why it is stalled, suspended or finished, else of what is in progress or waited for.",
        _reason,
        label="reason",
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
        "dapt_eta_seconds",
        "gauge",
        "Seconds that are left of pretraining, as last written to the status.",
        lambda adaptation: _single(
            adaptation.status.progress.eta_seconds if adaptation.status.progress else None
        ),
    ),
    Series(
        "dapt_stage_progress_ratio",
        "gauge",
        "Share of a running stage that is done; of several runs of a kind, of the one with the least.",
        lambda adaptation: least_progress(adaptation.status),
        label="stage",
    ),
    Series(
        "dapt_stage_eta_seconds",
        "gauge",
        "Seconds that are left of a running stage, as last written to the status; of several runs, the most.",
        lambda adaptation: most_seconds_left(adaptation.status),
        label="stage",
    ),
    Series(
        "dapt_progress_timestamp_seconds",
        "gauge",
        "When pretraining's progress was last written, or its run started if that is later; absent while none runs.",
        _progress_time,
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
        "dapt_running_gpu_seconds",
        "gauge",
        "Accelerator-seconds of the runs of a stage that have not ended, as last written to the status.",
        _running_gpu_seconds,
        label="stage",
    ),
    Series(
        "dapt_running_accelerators",
        "gauge",
        "Accelerators that the running runs of a stage hold; 0 on CPU.",
        _running_accelerators,
        label="stage",
    ),
    Series(
        "dapt_cost",
        "gauge",
        "Accelerator-hours so far at the profile's pricePerHour, in its currency; absent without a price.",
        lambda adaptation: _single(adaptation.status.usage.cost if adaptation.status.usage else None),
    ),
    Series(
        "dapt_waiting_since_timestamp_seconds",
        "gauge",
        "When the oldest run was created of which no process has started yet; absent while none waits.",
        _waiting_since,
    ),
    Series(
        "dapt_stage_waiting_seconds",
        "gauge",
        "Seconds from the creation to the first process, of the newest run of a stage that has started.",
        _waited,
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
