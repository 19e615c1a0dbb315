"""What is removed although nothing is wrong with it. Never the resource itself.

The Job and ConfigMap of a run go once the stored status has all that it reported: decisions read the ledger alone, so
nothing is lost with them but what people look at, and the last run that failed stays until its stage has succeeded.
Some time after the end the rest goes, if the spec asks for it: all runs' objects and, on request, the volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final

from dapt_contract.pod.failure import Cause
from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.names import object_name
from dapt_operator.api.v1alpha1.conditions import FINISHED, READY, find_condition, is_true
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord, StageKey
from dapt_operator.plan.desired import Removal, has_stored_end, removals_of_run
from dapt_operator.plan.observed import Observed, find_run
from dapt_operator.stage_run import RunPhase, RunState

CLAIM_KIND: Final = "PersistentVolumeClaim"
REGULAR_ENDS: Final = frozenset({Cause.STOPPED, Cause.FORGETTING_LIMIT})
"""Causes of an end that is no fault, so that nobody has to look at the run."""


def removals_of_ended(observed: Observed) -> tuple[Removal, ...]:
    """Return the deletion of the runs whose end the stored status has."""
    runs = deletable_runs(observed, observed.status.ledger or Ledger())
    return tuple(removal for run in runs for removal in removals_of_run(observed, run))


def deletable_runs(observed: Observed, ledger: Ledger) -> tuple[RunState, ...]:
    """Return the ended runs that nothing needs any more, once this ledger is the stored one.

    A run whose pods go on after the end of their trainer is deleted by `lingering`, which gives them some seconds.
    """
    if not observed.deletes_ended_runs:
        return ()
    ended = [run for run in observed.runs if not run.is_live and not run.is_deleting]
    recorded = [run for run in ended if has_stored_end(ledger, run.identity)]
    # What is published needs no explanation any more.
    kept = None if is_true(observed.status.conditions, READY) else _last_failure(recorded, ledger)
    return tuple(run for run in recorded if run is not kept and not run.lingering_pods)


def config_maps_of_vanished(observed: Observed, ledger: Ledger) -> tuple[Removal, ...]:
    """Return the ConfigMaps of runs that the ledger has just closed because somebody has deleted their Jobs.

    Without a Job nothing shows later that they are left: when the operator stops before it has deleted them, they go
    with the cleanup after the end, or with the resource.
    """
    if not observed.deletes_ended_runs:
        return ()
    return tuple(
        Removal("ConfigMap", _object_name(observed, stored.stage_key, stored.try_number))
        for stored in (observed.status.ledger or Ledger()).runs
        if stored.is_open
        and find_run(observed.runs, stored) is None
        and _is_closed(ledger, stored)
        # Whoever requests a stop deletes both.
        and not stored.is_stop_requested
    )


def _last_failure(runs: Iterable[RunState], ledger: Ledger) -> RunState | None:
    """Return the newest run that failed; None when a later run of its stage has done the work."""
    failed = [run for run in runs if _has_failed(run, ledger)]
    newest = max(failed, key=lambda run: run.identity.fence, default=None)
    if newest is None:
        return None
    later = (
        record
        for record in ledger.runs
        if record.stage == newest.identity.stage and record.fence > newest.identity.fence
    )
    return None if any(record.has_succeeded for record in later) else newest


def _has_failed(run: RunState, ledger: Ledger) -> bool:
    """Whether a run ended by a fault: as its record says, or, once that is about a newer run, as its pods do."""
    record = ledger.find(*run.stage_key)
    if record is not None and record.is_about(run.identity):
        return record.state == "Failed" and record.cause not in REGULAR_ENDS
    return run.phase is RunPhase.FAILED and run.cause not in REGULAR_ENDS


def _is_closed(ledger: Ledger, stored: RunRecord) -> bool:
    record = ledger.find(*stored.stage_key)
    return record is not None and not record.is_open and record.try_number == stored.try_number


def cleanup_due(observed: Observed) -> datetime | None:
    """Return when cleanup is due; None when it was done or not requested, or when the spec is not valid."""
    spec, ledger = observed.desired.spec, observed.status.ledger or Ledger()
    finished = find_condition(observed.status.conditions, FINISHED)
    if spec is None or spec.cleanup is None or spec.cleanup.after_seconds is None:
        return None
    if ledger.cleaned is not None or finished is None:
        return None
    return datetime.fromisoformat(finished.last_transition_time) + timedelta(
        seconds=spec.cleanup.after_seconds
    )


def leftovers(observed: Observed) -> tuple[Removal, ...]:
    """Return everything that cleanup removes.

    Jobs (or JobSets) that exist; the ConfigMaps of all runs, which no watch reports: their names follow from the run
    keys; the Service; the claim only when the spec says so and it was created from the profile's template. The Secret
    stays: the operator may create Secrets and nothing more.
    """
    spec, ledger = observed.desired.spec, observed.status.ledger or Ledger()
    keeps_volume = spec is None or spec.cleanup is None or spec.cleanup.volume != "Delete"
    jobs = (Removal(run.object_kind, run.object_name) for run in observed.runs if not run.is_deleting)
    config_maps = (
        Removal("ConfigMap", name)
        for work, num_runs in all_work(ledger)
        for name in (_object_name(observed, work, number) for number in range(1, num_runs + 1))
    )
    shared = (Removal(kind, name) for kind, _, name in (made.partition("/") for made in ledger.made))
    return (
        *jobs,
        *config_maps,
        *(removal for removal in shared if not (keeps_volume and removal.kind == CLAIM_KIND)),
    )


def all_work(ledger: Ledger) -> Iterator[tuple[StageKey, int]]:
    """Yield all work with its number of runs, that of dropped records included."""
    yield from ledger.dropped_work().items()
    yield from ((record.stage_key, record.try_number) for record in ledger.runs)


def _object_name(observed: Observed, work: StageKey, number: int) -> str:
    """Return the name of the objects of one run of this work."""
    owner = observed.owner
    identity = RunIdentity(
        namespace=owner.namespace,
        name=owner.name,
        uid=owner.uid,
        stage=work.stage,
        attempt=work.attempt,
        candidate=work.candidate,
        try_number=number,
        fence=1,  # no part of the key
    )
    return object_name(owner.name, work.stage, identity.key)
