"""What live runs report: `status.progress` and `status.preflight`.

Progress is written at most every 10 s and 1 %, so that a thousand adaptations do not write all the time.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final

from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.status import PreflightStatus, ProgressStatus
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.plan.observed import Observed
from dapt_operator.stage_run import RunPhase

LEAST_SECONDS: Final = 10.0
LEAST_FRACTION: Final = 0.01
TRAINING_KINDS: Final = ("pretrain", "finetune", "align")
"""Measuring stages have a preflight too. Several of them run at a time, and their numbers would replace each other."""


def progress(observed: Observed, ledger: Ledger) -> tuple[ProgressStatus | None, str | None]:
    """Return the progress of pretraining to write, and when it was read; the stored ones while they are new enough."""
    old, old_time = observed.status.progress, ledger.progress_time
    run = next((r for r in observed.live if r.kind == "pretrain" and r.progress is not None), None)
    ended = ledger.facts(PretrainFacts, "pretrain", ledger.attempt)
    if ended is not None and ended.ended_by == "Completed" and run is None:
        if old is not None and (old.fraction, old.step) == (1.0, ended.steps):
            return old, old_time
        return _completed(old, ended), timestamp(observed.now)
    if run is None or run.progress is None or run.phase is not RunPhase.RUNNING:
        return old, old_time
    reading = run.progress
    if old is not None and old_time is not None:
        age_seconds = (observed.now - datetime.fromisoformat(old_time)).total_seconds()
        change = abs(reading.fraction - (old.fraction or 0.0))
        # A step that was skipped or a spike is an Event, which is not to wait for the next percent.
        marks = (reading.skipped_steps or None, reading.loss_spikes or None)
        is_marked = marks != (old.skipped_steps, old.loss_spikes)
        if age_seconds < LEAST_SECONDS or (change < LEAST_FRACTION and not is_marked):
            return old, old_time
    eta_seconds = _finite(reading.eta_seconds)
    new = ProgressStatus(
        fraction=round(reading.fraction, 4),
        step=reading.step,
        total_steps=reading.total_steps,
        tokens=reading.tokens,
        tokens_per_second=_finite(reading.tokens_per_second),
        eta_seconds=max(0.0, eta_seconds) if eta_seconds is not None else None,
        skipped_steps=reading.skipped_steps or None,
        loss_spikes=reading.loss_spikes or None,
    )
    return new, timestamp(observed.now)


def _finite(value: float | None) -> float | None:
    """Return a number that a status can hold; a training that diverges may read others."""
    return value if value is not None and math.isfinite(value) else None


def _completed(old: ProgressStatus | None, ended: PretrainFacts) -> ProgressStatus:
    """Return the last progress of a pretraining that ran all its steps."""
    # One that is shorter than the time between two readings leaves only its report.
    last = old or ProgressStatus(total_steps=ended.steps)
    return last.with_values(
        fraction=1.0,
        step=ended.steps,
        tokens=ended.tokens,
        eta_seconds=0.0,
        skipped_steps=ended.skipped_steps or None,
        loss_spikes=ended.loss_spikes or None,
    )


def preflight(observed: Observed) -> PreflightStatus | None:
    """Return what the newest training stage measured before it loaded the model.

    These are the numbers of a run that is live, else the stored ones.

    A run measures once, so its numbers are no reason for a second write of the status.
    """
    stored = observed.status.preflight
    for run in observed.live:
        reading = run.progress.preflight if run.progress is not None else None
        if run.kind not in TRAINING_KINDS or reading is None:
            continue
        return PreflightStatus(
            stage=run.kind,
            run_key=run.identity.key,
            seconds=reading.seconds,
            all_reduce_bytes_per_second=reading.all_reduce_bytes_per_second,
            point_to_point_bytes_per_second=reading.point_to_point_bytes_per_second,
            slowest_link=reading.slowest_link or None,
            shared_memory_bytes=reading.shared_memory_bytes,
            write_bytes_per_second=reading.write_bytes_per_second,
            read_bytes_per_second=reading.read_bytes_per_second,
            clock_difference_seconds=reading.clock_difference_seconds,
            warnings=reading.warnings,
        )
    return stored
