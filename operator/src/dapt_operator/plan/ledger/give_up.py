"""Closes runs that can never start or be judged. Closing one uses no retry; the next reconcile creates a new run."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_bounds import EndedRun
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.launchers.observe.quota import NOT_SEEN
from dapt_operator.plan.observed import find_run
from dapt_operator.stage_run import Quota, RunPhase, RunState

UNSCHEDULABLE: Final = "Unschedulable"


def give_up_stuck(
    ledger: Ledger,
    runs: tuple[RunState, ...],
    now: datetime,
    generation: int,
    profile_digest: str,
    lost_secret: str = "",
) -> Ledger:
    """Return the ledger without open runs that wait in vain. They are no failures, so they use no retry.

    Four kinds: the ConfigMap of the run is gone, so its pods cannot start; the Job of its JobSet was deleted and made
    again, so that nobody knows whose pods it has; its signing key was lost or made again, and
    its pods would refuse a new one; or the run waits for something that a user had to correct, none of its pods has
    started, and the spec or the profile was changed since.

    Args:
        ledger: after `update_ledger`.
        runs: those that exist.
        now: aware, UTC.
        generation: of the spec.
        profile_digest: of the profile.
        lost_secret: name of the signing Secret if it does not exist; else empty.
    """
    for record in ledger.runs:
        run = find_run(runs, record) if record.is_open else None
        # A run that is gone, or about to be, is closed by `update_ledger`.
        if run is None or run.is_deleting:
            continue
        reason = _key_reason(ledger, run, lost_secret) or _reason(record, run, generation, profile_digest)
        if reason:
            end = end_of_given_up(run, now, reason)
            ledger = ledger.with_record(record.given_up(end, is_alive=run.is_live))
    return ledger


def end_of_given_up(run: RunState, now: datetime, message: str) -> EndedRun:
    """Return how a run counts that is given up now."""
    return EndedRun(
        timestamp(now),
        started=timestamp(run.started) if run.started else None,
        message=message,
        held_seconds=run.held_seconds(now),
    )


def _key_reason(ledger: Ledger, run: RunState, lost_secret: str) -> str:
    """Return why the pods of a run would refuse the signing key that they find when they start; empty when not."""
    if lost_secret and lost_secret in run.reasons_to_wait:
        return f"Secret {lost_secret} is gone: the stage starts again with a new key"
    is_older = bool(run.key_digests) and ledger.signing_keys[-1:] != run.key_digests[-1:]
    if is_older and ledger.signing_keys and run.is_waiting:
        return "its signing key was made again before it started: the stage starts again with the new one"
    return ""


def _reason(record: RunRecord, run: RunState, generation: int, profile_digest: str) -> str:
    """Return why a run can never start; empty when it may."""
    if run.is_child_replaced:
        return "the Job of its JobSet was deleted and made again: the stage starts again"
    if run.is_stage_file_lost:
        return f"ConfigMap {run.object_name} is gone: the stage starts again with a new one"
    if run.phase is not RunPhase.PENDING or record.started is not None or not _is_blocked(run):
        return ""
    if record.generation != generation:
        return "it could not start and the spec was changed: it starts again"
    # An adopted run has no profile digest: nobody knows which profile it was created with.
    if record.profile_digest not in (None, profile_digest):
        return "it could not start and the profile was changed: it starts again"
    return ""


def _is_blocked(run: RunState) -> bool:
    """Whether a pending run waits for something that another spec or profile may settle."""
    # Without Kueue no queue ever answers, and to name none is what a user does then.
    has_no_answer = run.quota is Quota.WAITING and run.quota_message == NOT_SEEN
    return (
        run.hindrance is not None
        or run.quota is Quota.NEVER
        or has_no_answer
        or run.waiting_reason.startswith(UNSCHEDULABLE)
    )
