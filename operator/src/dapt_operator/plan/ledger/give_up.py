"""Tries that can never start as they are: they are given up free of charge, and the next try is made anew."""

from __future__ import annotations

from datetime import datetime

from dapt_contract.failure import Cause
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.plan.ledger.records import find_state, put
from dapt_operator.stage_run import Quota, RunPhase, RunState

UNSCHEDULABLE = "Unschedulable"


def give_up_stuck(
    ledger: Ledger, runs: tuple[RunState, ...], now: datetime, generation: int, profile_digest: str
) -> Ledger:
    """Close the open tries that wait in vain; they are no failures, so they spend no retry.

    Two sorts: the ConfigMap of the try is gone, so that its pods cannot start; or the try hangs on what a person had
    to correct, none of its pods has started, and the spec or the profile was corrected since.

    Args:
        ledger: after `absorb`.
        runs: what is there now.
        now: aware, UTC.
        generation: of the spec.
        profile_digest: of the profile.
    """
    for record in ledger.runs:
        run = find_state(runs, record) if record.state == "Open" else None
        if run is None or run.is_deleting:
            continue
        said = _why(record, run, generation, profile_digest)
        if said:
            ledger = put(ledger, _given_up(record, said, now))
    return ledger


def _why(record: RunRecord, run: RunState, generation: int, profile_digest: str) -> str:
    if run.is_stage_file_lost:
        return f"ConfigMap {run.object_name} is gone: the stage starts anew with a new one"
    if run.phase is not RunPhase.PENDING or record.started is not None or not is_stuck(run):
        return ""
    if record.generation != generation:
        return "it could not start and the spec was changed: it starts anew"
    if record.profile_digest not in (None, profile_digest):
        return "it could not start and the profile was changed: it starts anew"
    return ""


def is_stuck(run: RunState) -> bool:
    """Whether a pending run hangs on something that another spec or profile may settle."""
    blocked = run.hindrance is not None or run.quota is Quota.NEVER
    return blocked or run.waiting_reason.startswith(UNSCHEDULABLE)


def _given_up(record: RunRecord, said: str, now: datetime) -> RunRecord:
    return record.model_copy(
        update={
            "state": "Failed",
            "retry": True,
            "cause": Cause.STOPPED.value,
            "message": said,
            "completed": timestamp(now),
        }
    )
