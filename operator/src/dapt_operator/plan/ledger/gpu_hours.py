"""Accelerator-hours: what was used, what is left, and how long a run may take. A profile of kind cpu uses none.

A run's time goes into the ledger while it runs, with each write of the status and at least every `NOTE_SECONDS`. So a
run that is never seen to end (its Job was deleted, the operator was away, a backup was restored) costs what it used.
The number of accelerators is the one that the run was created with: whoever may edit its Job cannot lower it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from dapt_contract.pod.failure import Cause
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.plan.observed import find_run
from dapt_operator.plan.sizing.resolve import RankLayout
from dapt_operator.stage_run import RunResources, RunState

SHORTEST_DEADLINE_SECONDS: Final = 60
NOTE_SECONDS: Final = 1800.0
"""The time of a running run is written at least this often. Rarely, since each time is a write of the status; a run
that is gone while the operator watches is charged until that moment all the same."""
LEAST_NOTE_SECONDS: Final = 1.0
"""Less is not worth a changed number."""


def used_seconds(ledger: Ledger, runs: Iterable[RunState], now: datetime) -> float:
    """Return the accelerator-seconds of every run that has ended, and of those that have not."""
    live = {run.identity.key: run for run in runs if run.is_live}
    running = 0.0
    for record in ledger.runs:
        run = find_run(live.values(), record) if record.is_open else None
        if run is not None:
            del live[run.identity.key]
        if record.is_open:
            running += accelerators_of(record, run) * seconds_so_far(record, run, now)
    # What is left is not in the ledger yet; of a run that it knows as ended, the cost is among those of the ended.
    unknown = (run for run in live.values() if ledger.find(*run.stage_key) is None)
    return ended_seconds(ledger) + running + sum(run.accelerator_seconds(now) for run in unknown)


def accelerators_of(record: RunRecord, run: RunState | None) -> int:
    """Return the accelerators of a record's newest run; what its objects say only where the record has none."""
    if record.accelerators is None and run is not None:
        return run.accelerators
    return record.num_accelerators


def seconds_so_far(record: RunRecord, run: RunState | None, now: datetime) -> float:
    """Return the seconds that the newest run of an open record has held its accelerators; `run`: None when not seen."""
    return max(record.noted_seconds, run.held_seconds(now) if run is not None else 0.0)


def seconds_of_vanished(record: RunRecord, now: datetime) -> float:
    """Return the same for a run that is gone without a report.

    It is noticed at once where the operator watches. Where it did not, the run has ended at some time since the last
    note; no more is counted than the operator would have left unwritten.
    """
    if record.started is None:
        return record.noted_seconds
    age_seconds = (now - datetime.fromisoformat(record.started)).total_seconds()
    return max(record.noted_seconds, min(age_seconds, record.noted_seconds + NOTE_SECONDS))


def note_running(ledger: Ledger, runs: Iterable[RunState], now: datetime, *, is_written: bool) -> Ledger:
    """Return the ledger with how far each running run is, where that is due.

    Args:
        ledger: after `update_ledger`.
        runs: those that exist.
        now: aware, UTC.
        is_written: whether the status is written in any case, so that a note costs nothing.
    """
    live = [run for run in runs if run.is_live and run.started is not None]
    for record in ledger.runs:
        run = find_run(live, record) if record.is_open else None
        if run is None:
            continue
        new_seconds = run.held_seconds(now) - record.noted_seconds
        if new_seconds >= (LEAST_NOTE_SECONDS if is_written else NOTE_SECONDS):
            noted = record.noting(
                held_seconds=run.held_seconds(now), accelerators=run.accelerators, step=reached_step(run)
            )
            ledger = ledger.with_record(noted)
    return ledger


def seconds_to_note(ledger: Ledger, runs: Iterable[RunState], now: datetime) -> float:
    """Return when the next note of `note_running` is due though nothing is written; infinite where nothing runs."""
    live = [run for run in runs if run.is_live and run.started is not None]
    found = ((record, find_run(live, record)) for record in ledger.runs if record.is_open)
    due = (
        record.noted_seconds + NOTE_SECONDS - run.held_seconds(now)
        for record, run in found
        if run is not None
    )
    return min(due, default=math.inf)


def reached_step(run: RunState) -> int:
    """Return the optimizer step that a run reached, by its report or its last reading; 0 for a stage without steps."""
    reported = run.facts.steps if isinstance(run.facts, PretrainFacts) else 0
    live = run.progress.step if run.progress is not None and run.progress.step is not None else 0
    return max(reported, live)


def ended_seconds(ledger: Ledger) -> float:
    """Return the accelerator-seconds of every run that has ended, those of dropped records included."""
    dropped = sum(ledger.closed.accelerator_seconds.values()) if ledger.closed is not None else 0.0
    return dropped + sum(record.accelerator_seconds for record in ledger.runs)


def limit_seconds(spec: DomainAdaptationSpec, profile: AdaptationProfileSpec) -> float | None:
    """Return the lower of the spec's and the profile's limit, in accelerator-seconds; None without a limit."""
    limits = [hours for hours in (spec.limits.gpu_hours, profile.limits.gpu_hours) if hours is not None]
    if not limits or profile.accelerator.kind == "cpu":
        return None
    return min(limits) * 3600.0


def deadline_seconds(resources: RunResources, left_seconds: float | None) -> int | None:
    """Return the active deadline of a Job in seconds on the clock, from what is left of the limit."""
    accelerators = resources.nodes * resources.accelerators_per_node
    if left_seconds is None or accelerators == 0:
        return None
    return max(SHORTEST_DEADLINE_SECONDS, int(left_seconds / accelerators))


def is_spent(left_seconds: float | None, record: RunRecord | None) -> bool:
    """Whether no further accelerator run may start: the limit is used up, or a deadline derived from it has struck."""
    if left_seconds is None:
        return False
    return left_seconds <= 0 or (record is not None and record.cause == Cause.DEADLINE)


def pretraining_seconds(
    spec: DomainAdaptationSpec,
    ledger: Ledger,
    layout: RankLayout,
    left_seconds: float | None,
    record: RunRecord | None,
) -> float | None:
    """Return pretraining's share of the limit, in seconds of training on the clock since the attempt began.

    What is left, minus what the later stages are expected to take, plus what earlier runs of this attempt took (the
    trainer counts its time over all runs). None without a limit.
    """
    accelerators = layout.nodes * layout.accelerators_per_node
    if left_seconds is None or accelerators == 0:
        return None
    share = max(0.0, left_seconds - reserved_seconds(spec, ledger))
    earlier = record.accelerator_seconds if record is not None else 0.0
    return round(max(float(SHORTEST_DEADLINE_SECONDS), (share + earlier) / accelerators), 1)


def reserved_seconds(spec: DomainAdaptationSpec, ledger: Ledger) -> float:
    """Return the accelerator-seconds kept for everything that runs alongside and after an attempt.

    One evaluation costs about what the base model's measure cost, the perplexities of a blend no more; verification
    also lets three models answer, so it counts twice. Fine-tuning and preference tuning, one node each, are given as
    much as one evaluation and the verification: their data is small.
    """
    baseline = ledger.find("baseline")
    evaluation_seconds = baseline.accelerator_seconds if baseline is not None else 0.0
    num_tunings = (spec.finetuning is not None) + (spec.preference is not None)
    num_shares = sum(share < 1.0 for share in spec.selection.interpolate)
    # As `blends` makes them: of each share two checkpoints and, where there is one, the average.
    num_averages = int(spec.selection.average_last > 1)
    num_blends = num_averages + num_shares * (2 + num_averages)
    num_evaluations = 1
    if spec.evaluation.when != "end":
        num_evaluations = spec.pretraining.checkpoints.count + num_blends
    return evaluation_seconds * (3.0 * (1 + num_tunings) + num_evaluations - 1 + num_blends)
