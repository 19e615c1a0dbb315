"""Chooses, among the runs that objects claim to be, those that the operator has created.

Anybody who may create Jobs can make one with the labels, the name and the owner of a run. So a run that the ledger
knows counts with the uid and the fence that the ledger has of it. A run that it does not know was created right before
the operator stopped, so its number and its fence follow those of the ledger closely; both are bounded, and neither a
fence of 10^18 nor a thousand Jobs pushes the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.v1alpha1.ledger import Ledger
from dapt_operator.api.v1alpha1.run_record import RunRecord
from dapt_operator.stage_run import Owner, RunState

MAX_UNKNOWN_RUNS: Final = 4
"""Runs that the operator may have created without storing them. One reconcile creates one, and stores it next."""
MAX_NUMBERS_A_FENCE: Final = 4
"""Run numbers that one new run may use up: those before it are passed over when their ConfigMap has other content."""
MAX_RUNS_OF_LOST_LEDGER: Final = 10_000
"""Bound on the fences of runs that exist while the status that knew them is lost."""
_FLOOR_SECONDS: Final = 60
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


def own_runs(
    runs: Iterable[RunState], owner: Owner, ledger: Ledger, age_seconds: float
) -> tuple[RunState, ...]:
    """Return the runs that count, each with the fence that the ledger has of it.

    Args:
        runs: read from objects that the adaptation controls.
        owner: the adaptation.
        ledger: as stored.
        age_seconds: of the adaptation.
    """
    records = {record.stage_key: record for record in ledger.runs}
    dropped = ledger.dropped_work()
    known: list[RunState] = []
    unknown: list[RunState] = []
    for run in runs:
        identity = run.identity
        if (identity.namespace, identity.name, identity.uid) != (owner.namespace, owner.name, owner.uid):
            continue
        record = records.get(run.stage_key)
        last_number = record.try_number if record is not None else dropped.get(run.stage_key, 0)
        if identity.try_number > last_number:
            if _may_be_new(identity, last_number, ledger, age_seconds):
                unknown.append(run)
        elif record is None or identity.try_number < last_number:
            # An older run: it only has to end, and its fence is below the newest.
            if identity.fence <= (record.fence if record is not None else ledger.fence):
                known.append(run)
        elif (recorded := _as_recorded(run, record)) is not None:
            known.append(recorded)
    kept = (*known, *_one_a_fence(unknown))
    return tuple(sorted(kept, key=lambda run: (run.identity.fence, run.object_name)))


def fence_floor(ledger: Ledger, age_seconds: float) -> int:
    """Return a number that no fence of an earlier run has reached; 0 while the ledger knows the newest fence.

    A status can be lost: removed by hand, or not restored with the resource. Checkpoints on the volume still have the
    fences of the runs that it knew, and refuse a run with a lower one. An adaptation starts less than one run a second,
    so its age is above all of them.

    Args:
        ledger: as stored; without a fence for an adaptation that is new, or whose status is lost.
        age_seconds: of the adaptation.
    """
    if ledger.fence > 0:
        return 0
    # Whole minutes: a reconcile that is repeated after an interruption renders the same run again.
    return int(max(0.0, age_seconds)) // _FLOOR_SECONDS * _FLOOR_SECONDS


def _may_be_new(identity: RunIdentity, last_number: int, ledger: Ledger, age_seconds: float) -> bool:
    """Whether the operator may have created a run that the ledger does not know."""
    if ledger.fence == 0:
        limit = fence_floor(ledger, age_seconds) + MAX_RUNS_OF_LOST_LEDGER
    elif identity.attempt > ledger.attempt:
        return False  # an attempt is stored before its first run is created
    else:
        limit = ledger.fence + MAX_UNKNOWN_RUNS
    num_fences = identity.fence - ledger.fence
    num_numbers = identity.try_number - last_number
    return 0 < num_fences <= limit - ledger.fence and num_numbers <= MAX_NUMBERS_A_FENCE * num_fences


def _as_recorded(run: RunState, record: RunRecord) -> RunState | None:
    """Return a run as the ledger knows it; None when another object stands in its place."""
    if record.object_uid is None:
        # Its object was created a moment ago and not seen running yet.
        return run if run.identity.fence == record.fence else None
    if run.object_uid != record.object_uid:
        return None
    identity = run.identity.model_dump() | {"fence": record.fence}
    return replace(run, identity=RunIdentity.model_validate(identity))


def _one_a_fence(runs: Iterable[RunState]) -> Iterable[RunState]:
    """Return of several runs with the same fence the one that was created first."""
    first: dict[int, RunState] = {}
    for run in sorted(runs, key=lambda run: (run.created or _LATEST, run.object_name)):
        first.setdefault(run.identity.fence, run)
    return first.values()
