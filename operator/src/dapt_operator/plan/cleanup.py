"""What is removed some time after the end: the runs' objects and, when asked for, the volume. Never the resource."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.names import object_name
from dapt_operator.api.v1alpha1.conditions import FINISHED, find_condition
from dapt_operator.api.v1alpha1.ledger import Ledger
from dapt_operator.plan.desired import Removal
from dapt_operator.plan.ledger.compaction import closed_run_counts
from dapt_operator.plan.ledger.records import Lineage, lineage_of
from dapt_operator.plan.observed import Observed

CLAIM = "PersistentVolumeClaim"


def cleanup_due(observed: Observed) -> datetime | None:
    """When cleanup is due; None when it was done or is not asked for, or when the spec cannot be read."""
    spec, ledger = observed.wish.spec, observed.status.ledger or Ledger()
    ended = find_condition(observed.status.conditions, FINISHED)
    if spec is None or spec.cleanup is None or spec.cleanup.after_seconds is None:
        return None
    if ledger.cleaned is not None or ended is None:
        return None
    return datetime.fromisoformat(ended.last_transition_time) + timedelta(seconds=spec.cleanup.after_seconds)


def leftovers(observed: Observed) -> tuple[Removal, ...]:
    """Everything that cleanup removes.

    Jobs (or JobSets) that are there; the ConfigMaps of all tries, which nobody watches: their names follow from the
    run keys; the Service; the claim only when the spec says so and it was made from the profile's template. The Secret
    stays: the operator may create Secrets and nothing more.
    """
    spec, ledger = observed.wish.spec, observed.status.ledger or Ledger()
    keeps = spec is None or spec.cleanup is None or spec.cleanup.volume != "Delete"
    made = (Removal(kind, name) for kind, _, name in (one.partition("/") for one in ledger.made))
    return (
        *(Removal(run.object_kind, run.object_name) for run in observed.runs if not run.is_deleting),
        *(
            Removal("ConfigMap", name)
            for lineage, tries in all_tries(ledger)
            for name in _names(observed, lineage, tries)
        ),
        *(removal for removal in made if not (keeps and removal.kind == CLAIM)),
    )


def all_tries(ledger: Ledger) -> Iterator[tuple[Lineage, int]]:
    """Every lineage with its number of tries, those whose records were let go included."""
    yield from closed_run_counts(ledger).items()
    yield from ((lineage_of(record), record.try_number) for record in ledger.runs)


def _names(observed: Observed, lineage: Lineage, tries: int) -> tuple[str, ...]:
    """Names of the objects of all tries of a lineage."""
    owner = observed.owner
    stage, attempt, candidate = lineage
    keys = (
        RunIdentity(
            namespace=owner.namespace,
            name=owner.name,
            uid=owner.uid,
            stage=stage,
            attempt=attempt,
            candidate=candidate,
            try_number=number,
            fence=1,  # no part of the key
        ).key
        for number in range(1, tries + 1)
    )
    return tuple(object_name(owner.name, stage, key) for key in keys)
