"""Decides what to do about one adaptation: the one decision that the cluster and the local run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dapt_contract.stage_file import digest_of_work, digest_without_checks
from dapt_operator.api.v1alpha1.conditions import FINISHED, is_true
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_bounds import CreatedRun
from dapt_operator.launchers.launcher import Launcher
from dapt_operator.plan.admission import admit
from dapt_operator.plan.chain import Chain
from dapt_operator.plan.chain_parts.assess import ChainInputs
from dapt_operator.plan.chain_parts.position import ENDS, Position
from dapt_operator.plan.cleanup import (
    cleanup_due,
    config_maps_of_vanished,
    leftovers,
    removals_of_ended,
)
from dapt_operator.plan.desired import (
    Removal,
    each_once,
    left_before,
    lingering,
    next_run,
    object_names,
    orphans,
    removals,
    removals_of_all,
    seconds_to_lingering,
)
from dapt_operator.plan.ledger.compaction import free_one_record, shorten_evaluations
from dapt_operator.plan.ledger.give_up import give_up_stuck
from dapt_operator.plan.ledger.gpu_hours import limit_seconds, used_seconds
from dapt_operator.plan.ledger.update import as_found, record_ends, request_stop, update_ledger
from dapt_operator.plan.observed import DesiredState, Observed, Refusal
from dapt_operator.plan.recreation import (
    lost_stage_files,
    recreation_notices,
    secret_of,
    shared_objects,
    used_by_live_runs,
    with_key_notes,
)
from dapt_operator.plan.requeue import (
    NEXT_SECONDS,
    QUIET_SECONDS,
    RUNNING_SECONDS,
    STOPPING_SECONDS,
    requeue_seconds,
    steady_seconds,
)
from dapt_operator.plan.stage_parts.attempts import possible_replays, replay_to_store
from dapt_operator.plan.status import build
from dapt_operator.plan.status.equality import is_equal
from dapt_operator.plan.status.events import Notice, notices
from dapt_operator.plan.status.size_limit import truncate_status
from dapt_operator.plan.transitions import Action
from dapt_operator.stage_run import Manifest, RunPhase, RunState, StageRun


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order: make sure of what must exist, apply, one status write, delete, events."""

    must_exist: tuple[Manifest, ...] = ()
    """Objects that the run to start, or a live run, shares with others, and stage files that pods wait for. Mostly they
    exist already."""
    apply: tuple[Manifest, ...] = ()
    """Objects of the run to start."""
    status: DomainAdaptationStatus | None = None
    """None: it is as stored, and an unchanged status is never written."""
    delete: tuple[Removal, ...] = ()
    events: tuple[Notice, ...] = ()
    requeue_after: float | None = None
    """Seconds; None: only a change wakes the next reconcile."""
    steady_seconds: float = 0.0
    """For how long the passing of time alone changes nothing: the same would be decided until something changes."""
    deletes_first: bool = False
    """Whether the status reports that something was deleted, and so is written after that."""
    needs_signing_secret: bool = False
    """Whether a run to start, or one that waits, needs the signing Secret. `reconcile` asks whether it exists and makes
    its key: a planner without randomness cannot."""
    starts_before_key: bool = False
    """Whether the run to start is the first one and needs no signing key, so that the digest of the key is stored with
    the run, and the Secret comes after both."""
    is_foreign: bool = False
    """Whether another operator installation owns the adaptation, so that nothing is done here."""

    def fields(self) -> dict[str, object]:
        """Return the plan's parts for one log line."""
        return {
            "must_exist": list(object_names(self.must_exist)),
            "apply": list(object_names(self.apply)),
            "delete": [f"{removal.kind}/{removal.name}" for removal in self.delete],
            "status": self.status is not None,
            "phase": self.status.phase if self.status is not None else None,
            "events": [notice.reason for notice in self.events],
            "requeue_after": self.requeue_after,
        }

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done now."""
        return not (self.apply or self.delete or self.status or self.events)


@dataclass(frozen=True)
class _Start:
    """The one run that a reconcile starts."""

    run: StageRun
    manifests: tuple[Manifest, ...]
    """Of the run alone."""
    shared: tuple[Manifest, ...]
    """Objects that it shares with other runs."""
    needs_signing_secret: bool
    ledger: Ledger
    """With the run's record."""


def decide(observed: Observed, launcher: Launcher) -> Plan:
    """Return the plan for one adaptation at one moment. Equal arguments give an equal plan.

    Args:
        observed: everything that is known.
        launcher: renders a stage run as manifests.
    """
    # 1. Gather what is desired. What has finished never runs again, whatever becomes of its spec and its Jobs. A
    #    refused spec deletes nothing but on suspension, so that its correction continues with the runs that exist.
    if observed.is_foreign:
        return Plan(is_foreign=True)
    if observed.is_deleting:
        # Owner references collect the children, but not before the last finalizer of somebody else is removed.
        return Plan(delete=(*removals_of_all(observed), *orphans(observed)))
    if is_true(observed.status.conditions, FINISHED):
        return _with_lingering(observed, _after_the_end(observed))
    desired = admit(observed.desired, observed.owner.namespace)
    if isinstance(desired, Refusal):
        return _with_lingering(observed, _while_refused(observed, desired))

    # 2. Update the ledger with everything that the runs report. From here on decisions read the ledger, so that they
    #    are the same when every Job is gone.
    updated = _updated_ledger(observed, desired)
    stage_files = lost_stage_files(observed, desired, updated)
    reported = _without_stuck_runs(observed, desired, updated, stage_files)
    limit = limit_seconds(desired.spec, desired.profile)
    used_accelerator_seconds = used_seconds(reported, observed.runs, observed.now)

    # 3. Find the position in the chain.
    left_seconds = None if limit is None else limit - used_accelerator_seconds
    inputs = ChainInputs.of(observed, desired, reported, left_seconds)
    position = Chain(inputs).position()
    if position.action in ENDS and any(_holds_up_the_end(run) for run in observed.live):
        # The end is the end: once the status says so, nothing may run, so what still runs is stopped first.
        position = position.awaiting_ends()

    # 4. Plan: start at most one run, and note in the ledger what is started, stopped or rolled back, since the status
    #    is written before anything is deleted.
    used = used_by_live_runs(observed, inputs, position, launcher)
    start = _start(observed, inputs, position, launcher)
    created, ledger = start, start.ledger if start is not None else reported
    replay = replay_to_store(inputs.spec, position.facts)
    if start is not None and start.run.kind == "pretrain" and replay is not None:
        # The share is stored before the run that trains with it is created, as a rollback is: no other version of the
        # operator may compute another one for it. The next reconcile creates the run.
        created, ledger = None, reported.with_replay_fraction(replay)
    if position.action is Action.STOP or position.is_spent:
        ledger = request_stop(ledger, observed.live, observed.now)
    elif position.action is Action.CLEAR:
        unwanted = (run for run in observed.live if run.stage_key not in position.kept)
        ledger = request_stop(ledger, unwanted, observed.now)
    if position.rollback is not None:
        ledger = ledger.with_attempt(position.rollback)
    ledger = with_key_notes(ledger, observed, position)
    removed = removals(observed, position.kept)
    plan = Plan(
        must_exist=each_once((*stage_files.values(), *used.manifests, *(created.shared if created else ()))),
        apply=created.manifests if created is not None else (),
        delete=(
            *removed,
            *lingering(observed),
            *orphans(observed),
            *removals_of_ended(observed),
            *config_maps_of_vanished(observed, reported),
        ),
        requeue_after=(
            requeue_seconds(observed, position, removed, ledger) if created is start else NEXT_SECONDS
        ),
        steady_seconds=steady_seconds(observed, position, reported, limit),
        needs_signing_secret=used.needs_signing_secret or bool(created and created.needs_signing_secret),
        starts_before_key=bool(created and not created.run.needs_signing_key) and reported.shared is None,
    )
    if observed.new_key_digest and plan.starts_before_key:
        ledger = ledger.with_signing_key(observed.new_key_digest)
    elif observed.new_key_digest:
        # The digest comes before its Secret, and the Secret before the run: what is started is decided again then.
        ledger, plan = reported.with_signing_key(observed.new_key_digest), Plan()

    # 5. Write the status. Its conditions are about the run of the chain, not about an evaluation alongside it.
    is_of_chain = start is not None and position.to_start is position.assessment
    run = start.run if start is not None and is_of_chain else None
    status = build.working_status(observed, inputs, ledger, position, run, used_accelerator_seconds)
    plan = _with_status(observed, status, plan, reported)
    return replace(plan, events=(*recreation_notices(observed), *plan.events))


def _while_refused(observed: Observed, refusal: Refusal) -> Plan:
    """Return the plan for a spec that cannot be worked on: its runs continue, and stop when they are suspended.

    They were rendered from a valid spec, so that their ends are recorded as ever.
    """
    stored = observed.status.ledger
    ledger = stored and record_ends(
        stored, observed.runs, observed.now, refusal.retries, is_suspended=observed.is_suspended
    )
    kept = frozenset(run.stage_key for run in observed.live if not observed.is_suspended)
    is_stopping = observed.is_suspended or any(run.has_failed_pod for run in observed.live)
    seconds = STOPPING_SECONDS if is_stopping else QUIET_SECONDS
    # The Job of an open record may be gone without any report: nothing else wakes us when that counts as its end.
    is_awaiting = bool(observed.live) or (
        ledger is not None and any(record.is_open for record in ledger.runs)
    )
    plan = Plan(delete=removals(observed, kept), requeue_after=seconds if is_awaiting else None)
    return _with_status(observed, build.refused_status(observed, refusal, ledger), plan, ledger)


def _after_the_end(observed: Observed) -> Plan:
    """Return the plan for what has finished: nothing of it may run, and its objects may be removed, once."""
    # A Job may come back from a backup, or be reported late by a watch.
    alive, due = (*removals_of_all(observed), *removals_of_ended(observed)), cleanup_due(observed)
    left_seconds = (due - observed.now).total_seconds() if due is not None else None
    if left_seconds is None or left_seconds > 0:
        plan = Plan(delete=alive, requeue_after=left_seconds)
        return _with_status(observed, build.finished_status(observed, None), plan)
    # The mark in the status comes last: a stop in between repeats deletions that find nothing, and leaves no object
    # behind.
    plan = Plan(delete=leftovers(observed), deletes_first=True)
    return _with_status(observed, build.finished_status(observed, observed.now), plan)


def _with_lingering(observed: Observed, plan: Plan) -> Plan:
    """Return the plan with the deletion of pods that go on after the end of their trainer, or without their Job."""
    plan = replace(plan, delete=(*plan.delete, *orphans(observed)))
    wait_seconds = seconds_to_lingering(observed)
    # A cleanup deletes them too.
    if wait_seconds is None or plan.deletes_first:
        return plan
    requeue_after = min(wait_seconds, RUNNING_SECONDS if plan.requeue_after is None else plan.requeue_after)
    return replace(plan, delete=(*plan.delete, *lingering(observed)), requeue_after=requeue_after)


def _holds_up_the_end(run: RunState) -> bool:
    """Whether processes of a live run exist or may still start.

    Of a deleted Job without a running pod nothing starts any more, and somebody's finalizer may keep it for ever.
    """
    return not (run.is_deleting and run.phase is RunPhase.PENDING)


def _updated_ledger(observed: Observed, desired: DesiredState) -> Ledger:
    def created(ledger: Ledger, run: RunState) -> CreatedRun | None:
        return _creation(observed, desired, ledger, run)

    return update_ledger(
        observed.status.ledger or Ledger(),
        observed.runs,
        observed.now,
        desired.profile.retries,
        created,
        is_suspended=desired.spec.suspend,
    )


def _without_stuck_runs(
    observed: Observed, desired: DesiredState, ledger: Ledger, stage_files: Mapping[str, Manifest]
) -> Ledger:
    """Return the ledger without open runs that wait in vain; one whose stage file is made again does not."""
    runs = tuple(
        replace(run, is_stage_file_lost=False) if run.object_name in stage_files else run
        for run in observed.runs
    )
    ledger = give_up_stuck(
        ledger,
        runs,
        observed.now,
        observed.generation,
        desired.profile_digest,
        secret_of(observed) if observed.is_signing_key_lost else "",
    )
    return shorten_evaluations(ledger)


def _creation(observed: Observed, desired: DesiredState, ledger: Ledger, run: RunState) -> CreatedRun | None:
    """Return how a run was created that the stored ledger does not know; None when it would not be created now.

    The operator stopped between the creation of the run and the write of the status, and the spec may have been edited
    since. The digest of the configuration decides: a run with another one does other work. One that does the same work
    continues although other resources or another pod template would be rendered now, as every run does that is known
    when they are edited. It keeps the generation and the profile that it was created from, so that it is replaced if it
    cannot start, and runs again if it failed, after they were edited.

    Args:
        observed: of this reconcile.
        desired: what runs are created from now.
        ledger: as it was when the run was created.
        run: the unknown run.
    """
    shares = possible_replays(desired.spec, ledger) if run.kind == "pretrain" else ()
    for share in shares:
        created = _creation_from(observed, desired, ledger.with_replay_fraction(share), run)
        if created is not None:
            return replace(created, replay_fraction=share)
    return None if shares else _creation_from(observed, desired, ledger, run)


def _creation_from(
    observed: Observed, desired: DesiredState, ledger: Ledger, run: RunState
) -> CreatedRun | None:
    """Return the same for one ledger."""
    inputs = ChainInputs(
        desired=desired,
        ledger=ledger,
        now=observed.now,
        generation=observed.generation,
        name=observed.owner.name,
        left_seconds=left_before(observed, desired, ledger, run),
    )
    position = Chain(inputs).position()
    for assessment in position.assessments:
        if assessment.stage is None or assessment.stage.stage_key != run.stage_key:
            continue
        stage = position.as_it_runs(assessment.stage, ledger)
        if run.config_digest in (digest_of_work(stage.config), digest_without_checks(stage.config)):
            return replace(
                as_found(ledger, run),
                generation=run.generation,
                profile_digest=run.profile_digest,
                inputs_digest=stage.inputs_digest,
                accelerators=stage.resources.nodes * stage.resources.accelerators_per_node,
            )
    return None


def _start(observed: Observed, inputs: ChainInputs, position: Position, launcher: Launcher) -> _Start | None:
    """Return the run that this reconcile starts; None when none is due."""
    due = position.to_start
    if due is None or due.stage is None:
        return None
    profile, owner, ledger = inputs.profile, observed.owner, inputs.ledger
    stage = position.as_it_runs(due.stage, ledger)
    shared = shared_objects(observed, inputs, position, launcher)
    # All with the first run and after an edit of the profile; then those that this run needs, since they may be gone.
    are_new = ledger.shared != shared.digest
    needed = shared.manifests if are_new else launcher.shared(profile, owner, stage.connected_nodes)
    run, record = next_run(observed, inputs.desired, ledger, stage, inputs.left_seconds)
    if due.record is None:
        # A first run brings a record of its own; a further one replaces that of the run before it.
        ledger = free_one_record(ledger, record.candidate)
    return _Start(
        run=run,
        manifests=launcher.render(run, profile, owner),
        shared=needed,
        needs_signing_secret=are_new or run.needs_signing_key,
        ledger=ledger.with_record(record).with_shared_objects(object_names(shared.manifests), shared.digest),
    )


def _with_status(
    observed: Observed, status: DomainAdaptationStatus, plan: Plan, reported: Ledger | None = None
) -> Plan:
    """Return the plan with the status and its events; unchanged when the status is as stored.

    Args:
        observed: with the stored status.
        status: as it should be.
        plan: without it.
        reported: the ledger before this reconcile started anything, which events about failures are read from.
    """
    if status is observed.status or is_equal(status, observed.status):
        return plan
    # Not equal as values may still be equal as text, where a newer version has a field more.
    written = status.to_dict()
    stored = observed.status.to_dict() if observed.is_status_whole else {}
    if written == stored:
        return plan
    fitted = truncate_status(status, written)
    # Shortening is deterministic: a status that was too long before is again the one that is stored.
    if fitted is not status and fitted.to_dict() == stored:
        return plan
    fitted = build.with_running_hours(observed, fitted)
    return replace(plan, status=fitted, events=notices(observed.status, fitted, reported))
