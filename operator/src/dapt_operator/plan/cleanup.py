"""What is removed some time after the end: the runs' objects and, on request, the volume. Never the resource itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.names import object_name
from dapt_operator.api.v1alpha1.conditions import FINISHED, find_condition
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import StageKey
from dapt_operator.plan.desired import Removal
from dapt_operator.plan.observed import Observed

CLAIM_KIND: Final = "PersistentVolumeClaim"


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
        for name in _object_names(observed, work, num_runs)
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


def _object_names(observed: Observed, work: StageKey, num_runs: int) -> tuple[str, ...]:
    """Return the names of the objects of all runs that did the same work."""
    owner = observed.owner
    keys = (
        RunIdentity(
            namespace=owner.namespace,
            name=owner.name,
            uid=owner.uid,
            stage=work.stage,
            attempt=work.attempt,
            candidate=work.candidate,
            try_number=number,
            fence=1,  # no part of the key
        ).key
        for number in range(1, num_runs + 1)
    )
    return tuple(object_name(owner.name, work.stage, key) for key in keys)
