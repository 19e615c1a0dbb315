"""The objects that are wanted and those that are not, as values; a shell makes them so."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from dapt_contract.failure import Cause
from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.plan.ledger.compaction import closed_run_counts
from dapt_operator.plan.ledger.gpu_hours import deadline_seconds
from dapt_operator.plan.ledger.records import Lineage, lineage_of
from dapt_operator.plan.observed import Observed
from dapt_operator.plan.stages.stage_plan import StagePlan
from dapt_operator.stage_run import Manifest, RunState, StageRun


@dataclass(frozen=True)
class Removal:
    """An object that has to go."""

    kind: str
    name: str
    grace_seconds: int | None = None
    """For a Pod: 0 kills it at once. None: its own grace period."""


def next_run(
    observed: Observed,
    ledger: Ledger,
    stage: StagePlan,
    record: RunRecord | None,
    left_seconds: float | None,
) -> tuple[StageRun, RunRecord]:
    """The next try of a stage, and the record that remembers it. Numbers of tries and fences only rise."""
    spec = observed.wish.spec
    assert spec is not None
    gone = closed_run_counts(ledger).get((stage.stage, stage.attempt, stage.candidate), 0)
    identity = RunIdentity(
        namespace=observed.owner.namespace,
        name=observed.owner.name,
        uid=observed.owner.uid,
        stage=stage.stage,
        attempt=stage.attempt,
        candidate=stage.candidate,
        try_number=(record.try_number if record else gone) + 1 + observed.passed_over,
        fence=ledger.fence + 1,
    )
    run = StageRun(
        identity=identity,
        kind=stage.kind,
        config=stage.config,
        resources=stage.resources,
        deadline_seconds=deadline_seconds(stage.resources, left_seconds),
        secret_names=stage.secret_names,
        signs_checkpoints=stage.signs_checkpoints,
        queue=spec.queue,
        priority_class_name=spec.priority_class_name,
        claims=stage.claims,
    )
    fresh: dict[str, object] = {
        "try_number": identity.try_number,
        "fence": identity.fence,
        "state": "Open",
        "retry": False,
        "cause": None,
        "exit_code": None,
        "message": "",
        "config_digest": run.stage_file.config_digest,
        "expects": getattr(stage.config, "expected_digest", None),
        "generation": observed.generation,
        "profile_digest": observed.wish.profile_digest,
        "created": timestamp(observed.now),
        "started": None,
        "completed": None,
        "not_before": None,
        "asked_seconds": None,
        "held": None,
    }
    if record is not None and not record.retry:  # a person changed the spec: its budgets begin anew
        fresh |= {"failures": {}, "stuck": 0}
    if record is not None and record.cause not in (None, Cause.STOPPED.value):
        fresh["restarts"] = record.restarts + 1
    start = record or RunRecord(
        stage=stage.stage,
        kind=stage.kind,
        attempt=stage.attempt,
        candidate=stage.candidate,
        fence=identity.fence,
    )
    return run, start.model_copy(update=fresh)


def removals(observed: Observed, wanted: AbstractSet[Lineage]) -> tuple[Removal, ...]:
    """What has to go: live runs other than the newest tries of the wanted lineages, and the peers of a failed pod.

    Only what the stored status knows: what it does not know is written there first, so that a run is never forgotten
    and made twice. A run that is being deleted is not deleted again; it is there until its pods are gone. Nor is one
    whose pods are failing: its failed pods would go with it before all has been told.
    """
    stored = observed.status.ledger or Ledger()
    newest = {lineage_of(record): record.try_number for record in stored.runs}
    found: list[Removal] = []
    for run in observed.live:
        if run.identity.try_number > newest.get(lineage_of(run.identity), 0):
            continue
        if _is_unwanted(run, wanted, newest) and not run.is_deleting and not run.has_failed_pod:
            found.append(Removal(run.object_kind, run.object_name))
        found += [Removal("Pod", name, grace_seconds=0) for name in run.peers_to_end]
    return tuple(found)


def _is_unwanted(run: RunState, wanted: AbstractSet[Lineage], newest: dict[Lineage, int]) -> bool:
    lineage = lineage_of(run.identity)
    return lineage not in wanted or run.identity.try_number < newest[lineage]


def remembered(ledger: Ledger, shared: tuple[Manifest, ...], digest: str) -> Ledger:
    """The ledger with the shared objects as they were applied, and all that ever were made."""
    names = (f"{manifest['kind']}/{manifest['metadata']['name']}" for manifest in shared)
    made = tuple(dict.fromkeys((*ledger.made, *names)))
    return ledger.model_copy(update={"shared": digest, "made": made})


def needs_shared(ledger: Ledger, record: RunRecord | None, digest: str) -> bool:
    """Whether the objects that all runs share must be made (again) with the next run.

    Args:
        ledger: as it is known.
        record: the lineage of the next run, None for its first try.
        digest: of the shared objects as they should be.
    """
    return ledger.shared != digest or (record is not None and record.cause is not None)
