"""What live runs report: `status.progress`, the progress of the other stages and `status.preflight`.

Progress is written at most every 10 s and 1 %, so that a thousand adaptations do not write all the time.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Final

from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.progress import (
    ForecastStatus,
    PreflightStatus,
    ProgressStatus,
    StageProgress,
)
from dapt_operator.plan.chain_parts.position import Position
from dapt_operator.plan.gates import perplexity
from dapt_operator.plan.ledger.stage_facts import measure_of_row
from dapt_operator.plan.observed import Observed
from dapt_operator.plan.stage_parts.attempts import Attempt, find_attempt
from dapt_operator.plan.stage_parts.forecast import MOST_PASSES, TrainingCourse, forecast
from dapt_operator.stage_run import RunPhase, RunState

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
        slow_rank=reading.slow_rank or None,
        forecast=old.forecast if old is not None else None,
    )
    return new, timestamp(observed.now)


def stage_progress(run: RunState | None, stored: StageProgress | None, now: datetime) -> StageProgress | None:
    """Return the progress of a stage to write; the stored one while it is new enough, None where the run is not live.

    That of pretraining is `status.progress`.
    """
    if run is None or run.kind == "pretrain" or run.phase is not RunPhase.RUNNING:
        return None
    reading = run.progress
    if reading is None:
        return stored
    if stored is not None and stored.time is not None:
        age_seconds = (now - datetime.fromisoformat(stored.time)).total_seconds()
        if age_seconds < LEAST_SECONDS or abs(reading.fraction - stored.fraction) < LEAST_FRACTION:
            return stored
    eta_seconds = _finite(reading.eta_seconds)
    return StageProgress(
        fraction=round(reading.fraction, 4),
        activity=reading.activity or None,
        eta_seconds=None if eta_seconds is None else round(max(0.0, eta_seconds), 1),
        slow_rank=reading.slow_rank or None,
        time=timestamp(now),
    )


def with_forecast(
    progress_status: ProgressStatus | None, observed: Observed, spec: DomainAdaptationSpec, position: Position
) -> ProgressStatus | None:
    """Return the progress with what general perplexity will be at the end of the attempt, by its newest reading.

    Without a forecast where no attempt runs, and where it is unlike the recorded runs: adapters, another schedule, a
    penalty, another start, text that is read again.
    """
    if progress_status is None:
        return None
    is_running = any(run.kind == "pretrain" for run in observed.live)
    found = _forecast(spec, position) if is_running else None
    return (
        progress_status if found == progress_status.forecast else progress_status.with_values(forecast=found)
    )


def _forecast(spec: DomainAdaptationSpec, position: Position) -> ForecastStatus | None:
    facts, numbers = position.facts, position.numbers
    base, attempt = facts.base, find_attempt(spec, facts, facts.attempt)
    rows = facts.pretrain.checkpoints if facts.pretrain is not None else ()
    if base is None or attempt is None or numbers is None or facts.prepare is None or not rows:
        return None
    domain_tokens = numbers.steps.total_tokens * (1.0 - attempt.replay_fraction)
    reads_once = domain_tokens <= MOST_PASSES * facts.prepare.domain_tokens
    if not (reads_once and _is_like_recorded_runs(spec, attempt)):
        return None
    schedule, newest = spec.pretraining.schedule, rows[-1]
    course = TrainingCourse(
        numbers.steps.total_steps,
        attempt.replay_fraction,
        schedule.warmup_fraction,
        schedule.minimum_ratio,
    )
    measured = measure_of_row(base, newest)
    rise_nats = perplexity.loss_nats(measured.general, "both") - perplexity.loss_nats(base.general, "both")
    expected = forecast(course, newest.step, rise_nats)
    if expected is None:
        return None
    return ForecastStatus(
        forgetting=_four_digits(expected.expected),
        least=_four_digits(expected.least),
        most=_four_digits(expected.most),
        step=newest.step,
    )


def _is_like_recorded_runs(spec: DomainAdaptationSpec, attempt: Attempt) -> bool:
    pretraining = spec.pretraining
    return (
        pretraining.method.lora is None
        and pretraining.regularization is None
        and pretraining.schedule.type == "cosine"
        and attempt.start is None
    )


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def _finite(value: float | None) -> float | None:
    """Return a number that a status can hold; a training that diverges may read others."""
    return value if value is not None and math.isfinite(value) else None


def _completed(old: ProgressStatus | None, ended: PretrainFacts) -> ProgressStatus:
    """Return the last progress of a pretraining that ran all its steps."""
    # One that is shorter than the time between two readings leaves only its report.
    last = old or ProgressStatus(total_steps=ended.steps)
    return last.with_values(
        fraction=1.0,
        slow_rank=None,
        step=ended.steps,
        tokens=ended.tokens,
        eta_seconds=0.0,
        forecast=None,
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
