"""`status.progress`: written at most every 10 s and 1 %, so that a thousand adaptations don't write for ever."""

from __future__ import annotations

from datetime import datetime

from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.ledger import Ledger
from dapt_operator.api.v1alpha1.status import ProgressStatus
from dapt_operator.plan.ledger.records import facts_of, find
from dapt_operator.plan.observed import Observed
from dapt_operator.stage_run import RunPhase

LEAST_SECONDS = 10.0
LEAST_FRACTION = 0.01


def progress(observed: Observed, ledger: Ledger) -> tuple[ProgressStatus | None, str | None]:
    """The progress of pretraining to write, and when it was read; the stored ones while they are fresh enough."""
    old, old_time = observed.status.progress, ledger.progress_time
    run = next((r for r in observed.live if r.kind == "pretrain" and r.progress is not None), None)
    ended = facts_of(find(ledger, "pretrain", 1 + len(ledger.attempts), None))
    if isinstance(ended, PretrainFacts) and ended.ended_by == "Completed" and run is None:
        if old is not None and (old.fraction, old.step) == (1.0, ended.steps):
            return old, old_time
        # A pretraining shorter than the time between two readings leaves only its report.
        known = old or ProgressStatus(total_steps=ended.steps)
        done = {"fraction": 1.0, "step": ended.steps, "tokens": ended.tokens, "eta_seconds": 0.0}
        return known.model_copy(update=done), timestamp(observed.now)
    if run is None or run.progress is None or run.phase is not RunPhase.RUNNING:
        return old, old_time
    read = run.progress
    if old is not None and old_time is not None:
        age = (observed.now - datetime.fromisoformat(old_time)).total_seconds()
        if age < LEAST_SECONDS or abs(read.fraction - (old.fraction or 0.0)) < LEAST_FRACTION:
            return old, old_time
    new = ProgressStatus(
        fraction=round(read.fraction, 4),
        step=read.step,
        total_steps=read.total_steps,
        tokens=read.tokens,
        tokens_per_second=read.tokens_per_second,
        eta_seconds=max(0.0, read.eta_seconds) if read.eta_seconds is not None else None,
    )
    return new, timestamp(observed.now)
