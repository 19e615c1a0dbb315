"""The objects that are to be created and removed, as values; `reconcile` creates and removes them."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from dapt_contract.run_identity import RunIdentity
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_bounds import CreatedRun
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord, StageKey
from dapt_operator.plan.ledger.gpu_hours import deadline_seconds, limit_seconds, used_seconds
from dapt_operator.plan.observed import DesiredState, Observed
from dapt_operator.plan.own_runs import fence_floor
from dapt_operator.plan.sizing.stopping import stop_seconds
from dapt_operator.plan.stage_parts.stage_plan import StagePlan
from dapt_operator.stage_run import Manifest, RunState, StageRun

LINGER_SECONDS: Final = 5.0
"""Time that the other containers of a pod have to end after the trainer; native sidecars do so by themselves."""
LINGER_GRACE_SECONDS: Final = 10
"""Grace period of a pod of which only other containers are left."""
NEW_KEY: Final = (
    "it begins from its start, because the key that signed its checkpoints is gone and they are refused"
)
"""Note on a run that follows others of its work after their signing key was lost."""


@dataclass(frozen=True)
class Removal:
    """An object to be deleted."""

    kind: str
    name: str
    grace_seconds: int | None = None
    """For a Pod: 0 kills it at once. None: its own grace period."""


def next_run(
    observed: Observed,
    desired: DesiredState,
    ledger: Ledger,
    stage: StagePlan,
    left_seconds: float | None,
) -> tuple[StageRun, RunRecord]:
    """Return the next run of a stage and the record that remembers it. Run numbers and fences only rise.

    Args:
        observed: of this reconcile.
        desired: what the run is created from.
        ledger: after everything that the existing runs report.
        stage: what the run is to do.
        left_seconds: accelerator-seconds left of the limit; None without one.
    """
    key, spec = stage.stage_key, desired.spec
    record = ledger.find(*key)
    # A dropped record leaves its number of runs, so that no number is used again: a run key names files for ever.
    last_number = record.try_number if record is not None else ledger.dropped_work().get(key, 0)
    identity = RunIdentity(
        namespace=observed.owner.namespace,
        name=observed.owner.name,
        uid=observed.owner.uid,
        stage=key.stage,
        attempt=key.attempt,
        candidate=key.candidate,
        try_number=last_number + 1 + observed.num_passed_over,
        fence=max(ledger.fence, fence_floor(observed.status.ledger or Ledger(), observed.age_seconds)) + 1,
    )
    run = StageRun(
        identity=identity,
        kind=stage.kind,
        config=stage.config,
        resources=stage.resources,
        deadline_seconds=deadline_seconds(stage.resources, left_seconds),
        secret_names=stage.secret_names,
        signs_checkpoints=stage.signs_checkpoints,
        signs_results=stage.signs_results,
        key_digests=ledger.signing_keys,
        queue=spec.queue,
        priority_class_name=spec.priority_class_name,
        claims=stage.claims,
        stop_seconds=_stop_seconds(ledger, stage, desired, record),
        generation=observed.generation,
        profile_digest=desired.profile_digest,
    )
    created = CreatedRun(
        number=identity.try_number,
        fence=identity.fence,
        config_digest=run.stage_file.config_digest,
        generation=observed.generation,
        created=timestamp(observed.now),
        profile_digest=desired.profile_digest,
        inputs_digest=stage.inputs_digest,
        accelerators=stage.resources.nodes * stage.resources.accelerators_per_node,
    )
    opened = (record or RunRecord.before_any_run(key, stage.kind)).opened(created)
    if loses_checkpoints(observed, stage.signs_checkpoints, record):
        opened = opened.with_message(NEW_KEY)
    return run, opened


def _stop_seconds(
    ledger: Ledger, stage: StagePlan, desired: DesiredState, record: RunRecord | None
) -> float | None:
    """Return how long the run will take to save and stop, by the estimate and by what earlier runs have measured."""
    prepared = ledger.facts(PrepareFacts, "prepare")
    facts = record.parsed_facts() if record is not None else None
    measured = facts.step_seconds_median if isinstance(facts, PretrainFacts) else 0.0
    model = prepared.model if prepared is not None else None
    return stop_seconds(stage.config, stage.resources, model, desired.profile, measured or None)


def note_of_live_run(observed: Observed, stage: StagePlan | None, record: RunRecord) -> str:
    """Return what was noted when a live run was created, or is to be noted now; mostly nothing."""
    if (
        observed.has_new_signing_key
        and stage is not None
        and stage.signs_checkpoints
        and record.try_number > 1
    ):
        return NEW_KEY
    return record.message


def loses_checkpoints(observed: Observed, signs_checkpoints: bool, record: RunRecord | None) -> bool:
    """Whether the next run of a record's work cannot resume, because the key of the checkpoints is a new one."""
    return observed.has_new_signing_key and signs_checkpoints and record is not None


def left_before(observed: Observed, desired: DesiredState, ledger: Ledger, run: RunState) -> float | None:
    """Return the accelerator-seconds that were left of the limit when a run was created; None without a limit."""
    limit = limit_seconds(desired.spec, desired.profile)
    if limit is None:
        return None
    others = [other for other in observed.runs if other.identity.fence < run.identity.fence]
    return limit - used_seconds(ledger, others, observed.now)


def removals(observed: Observed, kept: AbstractSet[StageKey]) -> tuple[Removal, ...]:
    """Return what is to be deleted: live runs except the newest of the kept work, and the peers of a failed pod.

    Only what the stored status knows: what it does not know is stored first, so that a run is never forgotten and
    created twice. A run that is being deleted is not deleted again; it exists until its pods are gone. Nor is one
    whose pods are failing: its failed pods would be deleted with it before their reports are read.
    """
    stored = observed.status.ledger or Ledger()
    newest_numbers = {record.stage_key: record.try_number for record in stored.runs}
    removed: list[Removal] = []
    for run in observed.live:
        key, number = run.stage_key, run.identity.try_number
        if number > newest_numbers.get(key, 0):
            continue
        is_unwanted = key not in kept or number < newest_numbers[key]
        if is_unwanted and not run.is_deleting and not run.has_failed_pod:
            removed += removals_of_run(observed, run)
        removed += [Removal("Pod", name, grace_seconds=0) for name in run.peers_to_end]
    return tuple(removed)


def removals_of_run(observed: Observed, run: RunState) -> tuple[Removal, ...]:
    """Return the deletion of a run: of its Job or JobSet, and of its ConfigMap unless the objects of runs stay.

    The ConfigMap goes first. No watch reports it, so the Job is what shows that something is left to delete: the
    operator may stop between the two. Pods that have started have read it; those that have not go with the Job.
    """
    holder = Removal(run.object_kind, run.object_name)
    return (Removal("ConfigMap", run.object_name), holder) if observed.deletes_ended_runs else (holder,)


def lingering(observed: Observed) -> tuple[Removal, ...]:
    """Return what is to be deleted of ended runs whose pods go on: a sidecar that does not end by itself.

    The whole object goes: when one of its pods is deleted alone, the Job controller counts the pod as failed, and a
    stage that has succeeded would leave a failed Job. Not before the stored status has the end of the run, and not in
    its first seconds: native sidecars end by themselves once the trainer has.
    """
    removed: list[Removal] = []
    for run in _lingering_runs(observed):
        if _linger_wait_seconds(run, observed.now) > 0.0:
            continue
        removed += removals_of_run(observed, run)
        # Nothing of ours is left in them to be saved, and they hold the accelerators that the next stage waits for.
        removed += [Removal("Pod", name, grace_seconds=LINGER_GRACE_SECONDS) for name in run.lingering_pods]
    return tuple(removed)


def orphans(observed: Observed) -> tuple[Removal, ...]:
    """Return the pods to be deleted that were left without their Job, once the stored status has the end of their run.

    They hold the accelerators that the next run waits for. The fence of that run refuses what they write, but no
    controller of theirs ends them.
    """
    stored = observed.status.ledger or Ledger()
    over = (pod for pod in observed.orphans if has_stored_end(stored, pod.identity))
    return tuple(Removal("Pod", pod.name) for pod in over)


def seconds_to_lingering(observed: Observed) -> float | None:
    """Return when the next pods that go on are to be deleted; None when there are none."""
    waits = (_linger_wait_seconds(run, observed.now) for run in _lingering_runs(observed))
    # Those that are due are deleted now, and the next reconcile repeats it where that was interrupted.
    return min((max(wait, 1.0) for wait in waits), default=None)


def _lingering_runs(observed: Observed) -> list[RunState]:
    """Return the ended runs with such pods whose end the stored status has; the write of that status comes before."""
    stored = observed.status.ledger or Ledger()
    return [
        run
        for run in observed.runs
        if run.lingering_pods
        and not run.is_live
        and not run.is_deleting
        and has_stored_end(stored, run.identity)
    ]


def _linger_wait_seconds(run: RunState, now: datetime) -> float:
    """Return the seconds that are left to the other containers of the pods of an ended run."""
    age_seconds = (now - run.completed).total_seconds() if run.completed is not None else LINGER_SECONDS
    return LINGER_SECONDS - age_seconds


def has_stored_end(stored: Ledger, run: RunIdentity) -> bool:
    """Whether the stored status has the end of a run, or knows that a newer run has replaced it."""
    key, number = StageKey.of(run), run.try_number
    record = stored.find(*key)
    if record is None:
        return number <= stored.dropped_work().get(key, 0)
    return number < record.try_number or (number == record.try_number and not record.is_open)


def object_names(manifests: Iterable[Manifest]) -> tuple[str, ...]:
    """Return the names of objects as KIND/NAME."""
    return tuple(f"{manifest['kind']}/{manifest['metadata']['name']}" for manifest in manifests)


def each_once(manifests: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """Return manifests in their order, each object once."""
    by_name = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in manifests}
    return tuple(by_name.values())


def removals_of_all(observed: Observed) -> tuple[Removal, ...]:
    """Return every live run for deletion, of an adaptation that has ended or is being deleted.

    Nothing is decided there any more, so no report has to be stored before its pods are deleted, and what only claims
    to be a run goes too.
    """
    return tuple(
        Removal(run.object_kind, run.object_name)
        for run in (*observed.live, *observed.strangers)
        if run.is_live and not run.is_deleting
    )
