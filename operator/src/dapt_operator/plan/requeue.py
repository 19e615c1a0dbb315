"""Says when an adaptation is looked at again although nothing was reported."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.plan.chain_parts.position import Position
from dapt_operator.plan.cleanup import deletable_runs
from dapt_operator.plan.desired import Removal, seconds_to_lingering
from dapt_operator.plan.ledger.gpu_hours import seconds_to_note, used_seconds
from dapt_operator.plan.observed import Observed
from dapt_operator.plan.transitions import Action, Fact

RUNNING_SECONDS: Final = 10.0
"""Until the next reconcile while a stage runs: for its progress, its time, and what a watch may have lost."""
QUIET_SECONDS: Final = 60.0
"""The same while all pods of every run are running and nothing has changed: whatever happens next is reported."""
STOPPING_SECONDS: Final = 1.0
"""The same while runs save and stop, or while pods end after one of theirs has failed."""
PEERS_SECONDS: Final = 0.2
"""The same while the peers of a failed pod are killed: the gang's next run waits for nothing but their end."""
NEXT_SECONDS: Final = 0.1
"""The same when more is to be started, or when a decision was stored that the next reconcile acts on. One reconcile
starts one run, so that it is small and a run number belongs to one run."""
STEADY_SECONDS: Final = 600.0
"""For so long at most a decision to wait is not made anew while nothing is reported."""
OBSTRUCTED_SECONDS: Final = 15.0
"""The same while an object of somebody else has a name that we need: no watch reports when it goes."""


def requeue_seconds(
    observed: Observed, position: Position, removed: tuple[Removal, ...], ledger: Ledger
) -> float | None:
    """Return when the next reconcile is due without a change; None: never.

    Args:
        observed: of this reconcile.
        position: in the chain.
        removed: what it deletes of live runs.
        ledger: as the status will have it.
    """
    seconds = _next_reconcile_seconds(observed, position, removed)
    if seconds is None and deletable_runs(observed, ledger):
        # Their end is stored by this reconcile, and they are deleted by the next one.
        return NEXT_SECONDS
    lingering_seconds = seconds_to_lingering(observed)
    if seconds is None or lingering_seconds is None:
        return seconds if lingering_seconds is None else lingering_seconds
    return min(seconds, lingering_seconds)


def steady_seconds(
    observed: Observed, position: Position, ledger: Ledger, limit_seconds: float | None
) -> float:
    """Return for how long the same is decided while nothing is reported; 0 where time alone may change it.

    Args:
        observed: of this reconcile.
        position: in the chain.
        ledger: with all that the runs have reported.
        limit_seconds: limit of the accelerator-seconds; None for none.
    """
    # What is being started, stopped, or waited for has deadlines of its own.
    is_waiting = position.action is Action.WAIT and position.assessment.fact is Fact.RUNNING
    if not (is_waiting and observed.live and all(run.is_steady for run in observed.live)):
        return 0.0
    if any(run.has_failed_pod for run in observed.live):
        return 0.0
    if _has_unwritten_progress(observed) or seconds_to_lingering(observed) is not None:
        return 0.0
    # A run that nobody sees counts as lost in time, a failed one runs again in time, and pods may outlast their Job.
    if any(
        (record.is_open and not any(record.is_about(run.identity) for run in observed.live))
        or record.has_pods_to_count
        or (record.not_before is not None and datetime.fromisoformat(record.not_before) > observed.now)
        for record in ledger.runs
    ):
        return 0.0
    then = observed.now + timedelta(seconds=STEADY_SECONDS)
    is_near_limit = limit_seconds is not None and used_seconds(ledger, observed.runs, then) >= limit_seconds
    if is_near_limit:
        return 0.0
    return max(0.0, min(STEADY_SECONDS, seconds_to_note(ledger, observed.live, observed.now)))


def _next_reconcile_seconds(
    observed: Observed, position: Position, removed: tuple[Removal, ...]
) -> float | None:
    """Return the same for what lives and what is to be started."""
    if any(removal.kind == "Pod" for removal in removed):
        return PEERS_SECONDS
    # Before everything else that is due: until the gang has ended its cause is not known.
    if any(run.has_failed_pod for run in observed.live):
        return STOPPING_SECONDS
    if position.rollback is not None or position.has_more_to_start:
        return NEXT_SECONDS
    if position.assessment.fact is Fact.OBSTRUCTED:
        return OBSTRUCTED_SECONDS
    if position.action in (Action.STOP, Action.CLEAR):
        return STOPPING_SECONDS
    record = position.assessment.record
    if position.assessment.fact is Fact.BACKOFF and record is not None and record.not_before is not None:
        backoff = max(0.0, (datetime.fromisoformat(record.not_before) - observed.now).total_seconds())
        return min(backoff, RUNNING_SECONDS) if observed.live else backoff
    if position.action is Action.WAIT and observed.live and all(run.is_steady for run in observed.live):
        return RUNNING_SECONDS if _has_unwritten_progress(observed) else QUIET_SECONDS
    if position.action in (Action.START, Action.WAIT) or observed.live:
        return RUNNING_SECONDS
    return None


def _has_unwritten_progress(observed: Observed) -> bool:
    """Whether a reading is newer than the status, which is not written at each one."""
    status = observed.status
    written = {
        stage.run_key: stage.progress.fraction for stage in status.stages if stage.progress is not None
    }
    pretraining = status.progress.fraction if status.progress is not None else None
    return any(
        round(run.progress.fraction, 4)
        != (pretraining if run.kind == "pretrain" else written.get(run.identity.key))
        for run in observed.live
        if run.progress is not None
    )
