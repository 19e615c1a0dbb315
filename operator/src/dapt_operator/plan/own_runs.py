"""Chooses, among the runs that objects claim to be, those that the operator has created.

Anybody who may create Jobs can make one with the labels, the name and the owner of a run. So a run that the ledger
knows counts with the uid and the fence that the ledger has of it. A run that it does not know was created right before
the operator stopped, or is known to a newer status than the one that is stored, or its record was lost: to an edit by
hand, or because it could not be read. Left out, it would run next to the one that is started in its place. Its number
and its fence are bounded: neither a fence of 10^18 nor a hundred Jobs push the ledger out of its limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from dapt_contract.base import MAX_ATTEMPTS
from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.v1alpha1.stored.ledger import MAX_RECORDS, Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.stage_run import Owner, RunPhase, RunState

MAX_FENCES_AHEAD: Final = 16
"""By how much a fence may exceed both the newest of the ledger and the seconds since the adaptation was created."""
MAX_NUMBERS_A_FENCE: Final = 4
"""Run numbers that one new run may use up: those before it are passed over when their ConfigMap has other content."""
MAX_KNOWN_AGAIN: Final = MAX_RECORDS // 2
"""Records up to which runs are taken up that the ledger does not know; the rest is for what they are followed by."""
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
            # Work without any record may have been known before, with a fence that the ledger has given out already.
            has_record = record is not None or run.stage_key in dropped
            if _may_be_new(identity, last_number, ledger.fence if has_record else 0, ledger, age_seconds):
                unknown.append(run)
        elif run.is_gone:
            continue  # as if its object were: the ledger closes its record as that of a lost run
        elif record is None or identity.try_number < last_number:
            # An older run: it only has to end, and its fence is below the newest.
            if identity.fence <= (record.fence if record is not None else ledger.fence):
                known.append(run)
        elif (recorded := _as_recorded(run, record)) is not None:
            known.append(recorded)
    # A JobSet may stand next to a Job of its name; where the ledger has no uid yet, both may seem to be the run.
    kept = (*_one_a_fence(known), *_within_capacity(_one_a_fence(unknown), ledger))
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


def _may_be_new(
    identity: RunIdentity, last_number: int, last_fence: int, ledger: Ledger, age_seconds: float
) -> bool:
    """Whether the operator may have created a run that the ledger does not know.

    Args:
        identity: of the run.
        last_number: of the runs of its work that the ledger knows.
        last_fence: that is certain to be older than the run's.
        ledger: as stored.
        age_seconds: of the adaptation.
    """
    num_fences = identity.fence - last_fence
    # A status may be older than the runs, as one from a backup is, or be lost. Even then an adaptation has had less
    # than one run for each second of its life.
    limit = max(ledger.fence, int(age_seconds)) + MAX_FENCES_AHEAD
    return (
        num_fences > 0
        and identity.fence <= limit
        and identity.try_number - last_number <= MAX_NUMBERS_A_FENCE * num_fences
        and identity.attempt <= MAX_ATTEMPTS
    )


def _as_recorded(run: RunState, record: RunRecord) -> RunState | None:
    """Return a run as the ledger knows it; None when another object stands in its place."""
    if record.object_uid is None:
        # Its object was created a moment ago and not seen running yet.
        return run if run.identity.fence == record.fence else None
    if run.object_uid != record.object_uid:
        return None
    identity = RunIdentity.model_validate(run.identity.model_dump() | {"fence": record.fence})
    # Of a JobSet whose Job is not known yet no pod counts.
    is_child_replaced = record.child_uid and run.child_uid and run.child_uid != record.child_uid
    if record.is_open and is_child_replaced:
        return _without_report(replace(run, identity=identity))
    return replace(run, identity=identity)


def _without_report(run: RunState) -> RunState:
    """Return the run of a JobSet whose Job was deleted and made again, by the JobSet controller or by anybody.

    It is live whatever its pods report, so that it is deleted before the next run starts.
    """
    return replace(
        run,
        phase=RunPhase.RUNNING,
        is_child_replaced=True,
        cause=None,
        exit_code=None,
        message="",
        facts=None,
        completed=None,
        progress=None,
        has_failed_pod=False,
        peers_to_end=(),
        lingering_pods=(),
    )


def _within_capacity(unknown: Iterable[RunState], ledger: Ledger) -> list[RunState]:
    """Return those of these runs that live and the newest of the others, as many as the ledger can take up."""
    work = {record.stage_key for record in ledger.runs}
    kept = []
    for run in sorted(unknown, key=lambda run: (run.is_live, run.identity.fence), reverse=True):
        if run.stage_key in work or len(work) < MAX_KNOWN_AGAIN:
            work.add(run.stage_key)
            kept.append(run)
    return kept


def _one_a_fence(runs: Iterable[RunState]) -> Iterable[RunState]:
    """Return of several runs with the same fence the one that was created first."""
    first: dict[int, RunState] = {}
    for run in sorted(runs, key=lambda run: (run.created or _LATEST, run.object_name)):
        first.setdefault(run.identity.fence, run)
    return first.values()
