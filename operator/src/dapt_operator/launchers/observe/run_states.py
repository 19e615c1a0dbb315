"""Derives the state of a run from its Job or JobSet and its pods; the same for every launcher.

A Job or JobSet is a run if the adaptation controls it and its name is the one that we would give it
(`labels.held_run`). A pod belongs to the run whose Job controls it, by the Job's uid, whatever its labels say. Each run
has exactly one phase. A run has failed when its object reports it, or when one trainer has failed and none is alive:
the object's own status lags its pods by seconds. It has succeeded when all trainers have, whatever became of other
containers of their pods, and then the first pod's termination message must hold the facts. A lost message of a failed
pod costs only its sentence. A success without facts counts as a failure of cause Crash; its retry finds the finished
report on the volume and reports it again at once.

A cache may strip everything but these paths, which are all that launchers read:
    all      apiVersion, kind, metadata.{name,namespace,uid,labels,annotations,creationTimestamp,deletionTimestamp,
             ownerReferences}
    Job      spec.{completions,suspend}, spec.template.metadata.labels,
             spec.template.spec.containers[].{name,args,resources.limits},
             status.{conditions,startTime,completionTime}
    JobSet   spec.suspend, spec.replicatedJobs[].template.spec.{completions,template as above},
             status.conditions
    Pod      metadata.deletionGracePeriodSeconds, spec.nodeName,
             status.{phase,reason,message,conditions},
             status.{initContainerStatuses,containerStatuses}[].{name,image,state,started,restartCount}
    Workload metadata.name, spec.active, status.conditions[].{type,status,message}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError
from dapt_contract.pod.environment import SIGNING_KEY_DIGESTS
from dapt_contract.pod.failure import PRECEDENCE, Cause
from dapt_contract.pod.message import StageMessage
from dapt_contract.sentences import shortened
from dapt_operator.api import names
from dapt_operator.launchers.labels import ANNOTATION_ACCELERATOR, HeldRun, controller_of, held_run
from dapt_operator.launchers.observe.containers import parse_time
from dapt_operator.launchers.observe.pod_states import Pod, newest_by_index, peers_to_end, read_pod
from dapt_operator.launchers.observe.pod_waiting import STARTING, refusal_of
from dapt_operator.launchers.observe.quota import quota_of
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.remembered import remembered
from dapt_operator.stage_run import (
    MAX_MESSAGE_CHARACTERS,
    Children,
    Hindrance,
    Manifest,
    RunPhase,
    RunState,
)

LOST_MESSAGE: Final = (
    "the run succeeded but its termination message is lost ({why}); a retry repeats it from the report"
)
TAMPERED: Final = (
    "ConfigMap {name} was changed after it was written (its stage.json has SHA-256 {actual}, the run was started with"
    " {expected}): delete the ConfigMap, then the stage starts again"
)
REFUSED_REPORT: Final = "its report cannot be used ({why}), so its end cannot be judged: {sentence}"
_JUDGED_BY_REPORT: Final = frozenset({Cause.FORGETTING_LIMIT, Cause.DIVERGED})
"""Causes that are no faults where the report lists what was reached until then."""
_DEADLINE_EFFECTS: Final = frozenset({Cause.STOPPED, Cause.INFRASTRUCTURE, Cause.DISRUPTION, Cause.CRASH})
GONE_AFTER: Final = timedelta(seconds=30)
"""A deleted object without a living pod counts as gone after this long: until then a pod may not be reported yet."""
_CACHED_FACTS: Final = 512
_MAX_ANNOTATION_CHARACTERS: Final = 128
_MAX_GENERATION_DIGITS: Final = 18
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Gang:
    """The object that holds a run's pods, whatever its kind."""

    kind: str
    completions: int
    """Number of pods."""
    is_suspended: bool
    pod_spec: Manifest
    complete: Manifest | None
    """Its condition of success; None before the end and after a failure."""
    failed: Manifest | None
    """Its condition of failure."""
    is_deadline_passed: bool = False
    """Whether it failed because of its deadline."""
    started: datetime | None = None


def true_conditions(manifest: Manifest) -> dict[str, Manifest]:
    """Return the conditions whose status is True, by type."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    return {str(item.get("type")): item for item in conditions if item.get("status") == "True"}


def read_run_states(
    children: Children, now: datetime, read: Callable[[Manifest], Gang | None]
) -> tuple[RunState, ...]:
    """Return the state of every run whose object `read` accepts, oldest fence first.

    Args:
        children: all objects of the adaptation.
        now: aware, UTC.
        read: reads the launcher's own kind of object; returns None for any other.
    """
    pods_by_job: dict[str, list[Manifest]] = {}
    for pod in children.pods:
        if job_uid := job_uid_of(pod):
            pods_by_job.setdefault(job_uid, []).append(pod)
    states = []
    for item in children.jobs:
        # The kind first: each launcher sees all objects, and to find the run of one costs more.
        gang = read(item)
        held = held_run(item) if gang is not None else None
        if held is not None and gang is not None:
            pods = pods_by_job.get(_job_uid(item, children), [])
            states.append(_run_state(held, item, gang, pods, children, now))
    # By name too: the order must not depend on that of the cache.
    return tuple(sorted(states, key=lambda state: (state.identity.fence, state.object_name)))


def job_uid_of(pod: Manifest) -> str:
    """Return the uid of the Job that controls a pod; empty for a pod of anything else."""
    controller = controller_of(pod)
    is_job = controller.get("kind") == "Job" and str(controller.get("apiVersion", "")).startswith("batch/")
    return str(controller.get("uid") or "") if is_job else ""


def _job_uid(manifest: Manifest, children: Children) -> str:
    """Return the uid of the Job whose pods belong to a Job or JobSet; empty while it is not known."""
    metadata = manifest["metadata"]
    if manifest.get("kind") == "JobSet":
        return children.child_jobs.get(metadata["name"], "")
    return str(metadata.get("uid") or "")


def _run_state(
    held: HeldRun,
    manifest: Manifest,
    gang: Gang,
    pod_manifests: Sequence[Manifest],
    children: Children,
    now: datetime,
) -> RunState:
    metadata, identity, kind = manifest["metadata"], held.identity, held.kind
    name, labels = metadata["name"], metadata.get("labels") or {}
    pods = newest_by_index(
        read_pod(pod, identity, kind, now, children.pod_events.get(pod["metadata"].get("name", ""), ""))
        for pod in pod_manifests
    )
    starts = [pod.started for pod in pods if pod.started] or ([gang.started] if gang.started else [])
    ends = [pod.finished for pod in pods if pod.finished]
    state = RunState(
        identity=identity,
        kind=kind,
        config_digest=_annotation(metadata, names.ANNOTATION_CONFIG_DIGEST),
        generation=_generation(metadata),
        profile_digest=_annotation(metadata, names.ANNOTATION_PROFILE_DIGEST) or None,
        object_name=name,
        phase=RunPhase.PENDING,
        object_kind=gang.kind,
        object_uid=str(metadata.get("uid") or ""),
        child_uid=children.child_jobs.get(name, "") if gang.kind == "JobSet" else "",
        created=parse_time(metadata.get("creationTimestamp")),
        started=min(starts, default=None),
        accelerators=gang.completions * _accelerators(metadata, gang),
        progress=children.progress.get(name),
        is_deleting=bool(metadata.get("deletionTimestamp")),
        lingering_pods=tuple(pod.name for pod in pods if pod.is_lingering),
        stage_file_sha256=_expected_digest(gang),
        key_digests=_key_digests(gang),
    )
    is_alive = any(pod.is_alive for pod in pods)
    num_succeeded = sum(pod.phase == "Succeeded" for pod in pods)
    # 1. The run is over. The pods decide as well as the object, whose status follows theirs seconds later.
    if gang.complete is not None or (num_succeeded >= gang.completions and not is_alive):
        completed = max(ends, default=_transition(gang.complete))
        return _succeeded(replace(state, completed=completed), pods)
    failed = [pod for pod in pods if pod.has_failed]
    if gang.failed is not None or (failed and not is_alive):
        completed = max(ends, default=_transition(gang.failed))
        return _failed(replace(state, completed=completed), failed, gang, children.logs)
    deleted = parse_time(metadata.get("deletionTimestamp"))
    state = replace(state, is_gone=deleted is not None and not is_alive and now - deleted >= GONE_AFTER)
    # 2. The run is live: its files and its quota matter.
    state = _with_tampering(state, gang, pods, children)
    quota, quota_message = quota_of(
        labels, suspended=gang.is_suspended, workload=children.workloads.get(name)
    )
    state = replace(state, quota=quota, quota_message=quota_message)
    waiting = _waiting(gang, pods, children.refusals.get(name, ""))
    if failed:
        return replace(
            state, phase=RunPhase.RUNNING, peers_to_end=peers_to_end(pods, now), has_failed_pod=True
        )
    if any(pod.is_running for pod in pods) or num_succeeded:
        has_deleted_pod = any(pod.is_alive and pod.is_deleted for pod in pods)
        running = replace(state, phase=RunPhase.RUNNING, has_deleted_pod=has_deleted_pod)
        return _partly_running(running, gang, pods, waiting)
    if not waiting.message and gang.is_suspended:
        waiting = replace(waiting, message=quota_message or "Suspended: the Job waits to be admitted")
    return replace(
        state,
        started=None,  # a Job has a start time before any pod of it runs
        message=waiting.message,
        waiting_reason=waiting.message.partition(":")[0],
        hindrance=waiting.hindrance,
    )


@dataclass(frozen=True)
class _Waiting:
    """What the pods of a gang that have not started wait for."""

    message: str
    hindrance: Hindrance | None


def _annotation(metadata: Manifest, name: str) -> str:
    """Return an annotation of a run's object, which whoever may edit the object may write; empty when it has none."""
    return str((metadata.get("annotations") or {}).get(name, ""))[:_MAX_ANNOTATION_CHARACTERS]


def _generation(metadata: Manifest) -> int:
    text = _annotation(metadata, names.ANNOTATION_GENERATION)
    return int(text) if text.isdecimal() and len(text) <= _MAX_GENERATION_DIGITS else 0


def _waiting(gang: Gang, pods: Sequence[Pod], refusal: str) -> _Waiting:
    messages = [pod.waiting for pod in pods if pod.waiting]
    # Of several pods the one that says more than that it is starting.
    message = next(
        (text for text in messages if text.partition(":")[0] not in STARTING), next(iter(messages), "")
    )
    hindrance = next((pod.hindrance for pod in pods if pod.hindrance), None)
    # A refusal is read from an Event, which outlives it: it counts only while a pod is missing.
    if refusal and len(pods) < gang.completions:
        refused = refusal_of(refusal)
        if isinstance(refused, Hindrance):
            return _Waiting(message, hindrance or refused)
        message = refused
    return _Waiting(message, hindrance)


def _partly_running(state: RunState, gang: Gang, pods: Sequence[Pod], waiting: _Waiting) -> RunState:
    """Return the state of a gang that runs, with what the rest of its pods wait for."""
    late = [pod for pod in pods if not pod.is_running and pod.is_alive]
    num_late = len(late) + max(0, gang.completions - len(pods))
    if num_late == 0:
        return state
    created = [pod.created for pod in late if pod.created] or ([state.created] if state.created else [])
    # Pods of a gang start within seconds of each other, which is nothing to report.
    is_starting = waiting.message.partition(":")[0] in STARTING
    message = "" if is_starting else f"{num_late} of {gang.completions} pods: {waiting.message}"
    return replace(
        state,
        is_partly_running=True,
        waiting_since=min(created, default=None),
        message=message,
        waiting_reason=waiting.message.partition(":")[0],
        hindrance=waiting.hindrance,
    )


def _with_tampering(state: RunState, gang: Gang, pods: Sequence[Pod], children: Children) -> RunState:
    """Compare the file that the run was started with to the one that its pods would read now."""
    name = state.object_name
    if name not in children.stage_digests:
        return state
    actual, expected = children.stage_digests[name], state.stage_file_sha256
    if actual is None:
        # A pod reads the ConfigMap when it starts: only those that are still to start miss it.
        num_started = sum(pod.is_running or not pod.is_alive for pod in pods)
        return replace(state, is_stage_file_lost=num_started < gang.completions)
    if expected and actual != expected:
        message = TAMPERED.format(name=name, actual=actual[:12], expected=expected[:12])
        return replace(state, tampering=message)
    return state


def _expected_digest(gang: Gang) -> str:
    """Return the SHA-256 that the trainer's container gets as an argument; empty when it has none."""
    arguments = [str(item) for item in _trainer(gang).get("args") or []]
    position = arguments.index("--sha256") + 1 if "--sha256" in arguments else len(arguments)
    return arguments[position] if position < len(arguments) else ""


def _key_digests(gang: Gang) -> tuple[str, ...]:
    """Return the digests of the signing keys that the trainer's container may use; empty when it may use any."""
    values = (
        str(item.get("value") or "")
        for item in _trainer(gang).get("env") or []
        if item.get("name") == SIGNING_KEY_DIGESTS
    )
    return tuple(filter(None, next(values, "").split(",")))


def _succeeded(state: RunState, pods: Sequence[Pod]) -> RunState:
    first = next((pod for pod in pods if pod.index == 0), None)
    why = first.why_lost if first else "the pod is gone"
    facts: Contract | None = None
    if first is not None and first.message is not None:
        try:
            facts = _facts_of(first.message)
            why = "it holds no facts"
        except ContractError as error:
            why = str(error)
    if first is None or facts is None:
        message = LOST_MESSAGE.format(why=why)
        return replace(state, phase=RunPhase.FAILED, cause=Cause.CRASH, exit_code=0, message=message)
    return replace(state, phase=RunPhase.SUCCEEDED, exit_code=0, message=first.sentence, facts=facts)


def _failed(
    state: RunState, failed: Sequence[Pod], gang: Gang, logs: Mapping[str, tuple[str, ...]]
) -> RunState:
    """Choose the run's cause: the first by precedence of its failed pods, else the object's own reason."""
    facts, why_refused = _facts_despite_failure(failed)
    state = replace(state, phase=RunPhase.FAILED, facts=facts)
    causes = [(pod, pod.cause or Cause.CRASH) for pod in failed]
    # 1. At the deadline the controller stops the pods, so being stopped or killed is its effect and not a cause.
    if gang.is_deadline_passed:
        causes = [(pod, cause) for pod, cause in causes if cause not in _DEADLINE_EFFECTS]
    # 2. Peers are stopped because one pod failed, or fail because it is gone; they count where nothing else is known.
    first_hand = [(pod, cause) for pod, cause in causes if not pod.is_effect] or causes
    causes = [(pod, cause) for pod, cause in first_hand if cause != Cause.STOPPED] or first_hand
    # 3. No pod explains the failure.
    if not causes:
        cause = Cause.DEADLINE if gang.is_deadline_passed else Cause.INFRASTRUCTURE
        message = (gang.failed or {}).get("message") or (
            f"the deadline of the {gang.kind} passed"
            if gang.is_deadline_passed
            else f"the {gang.kind} failed and its pods are gone"
        )
        return replace(state, cause=cause, message=shortened(str(message), MAX_MESSAGE_CHARACTERS))
    # 4. Only its queue suspends a Job that ran: the pods were deleted to make place for another workload.
    if gang.is_suspended:
        ended_by_queue = (Cause.INFRASTRUCTURE, Cause.STOPPED)
        causes = [
            (pod, Cause.DISRUPTION if pod.is_effect and cause in ended_by_queue else cause)
            for pod, cause in causes
        ]
    # Of equal causes the earliest: it is the nearest to what went wrong first.
    pod, cause = min(causes, key=lambda item: (PRECEDENCE.index(item[1]), item[0].finished or _LATEST))
    sentence = pod.sentence
    # 5. A refused report is not a lost one: read again it is refused again, and the user has to know why.
    if why_refused and cause in _JUDGED_BY_REPORT:
        cause = Cause.CRASH
        sentence = shortened(
            REFUSED_REPORT.format(why=why_refused, sentence=sentence), MAX_MESSAGE_CHARACTERS
        )
    return replace(
        state,
        cause=cause,
        exit_code=pod.exit_code,
        message=sentence,
        last_log_lines=tuple(logs.get(pod.name, ())),
    )


def _facts_despite_failure(pods: Sequence[Pod]) -> tuple[Contract | None, str]:
    """Return the facts that a failed run has reported, or why they are refused; neither when it reported none."""
    for pod in pods:
        # Rank 0 alone reports facts; pretraining reports its checkpoints after a failure too.
        if pod.index == 0 and pod.message is not None:
            try:
                return _facts_of(pod.message), ""
            except ContractError as error:
                return None, str(error)
    return None, ""


# By the identity of the message, which is decoded once.
@remembered(_CACHED_FACTS)
def _facts_of(message: StageMessage) -> Contract | None:
    return message.parsed_facts()


def _trainer(gang: Gang) -> Manifest:
    containers: Sequence[Manifest] = gang.pod_spec.get("containers") or []
    return next((item for item in containers if item.get("name") == CONTAINER), {})


def _accelerators(metadata: Manifest, gang: Gang) -> int:
    """Return the accelerators of one pod: the trainer's limit of the resource that the object's annotation names."""
    resource = (metadata.get("annotations") or {}).get(ANNOTATION_ACCELERATOR)
    amount = str(((_trainer(gang).get("resources") or {}).get("limits") or {}).get(resource, "0"))
    return int(amount) if amount.isdigit() else 0


def _transition(condition: Manifest | None) -> datetime | None:
    return parse_time((condition or {}).get("lastTransitionTime"))
