"""From the object of a run and its pods to the state of the run; the same for every launcher.

Each pod counts into exactly one run (by its labels), each run has exactly one phase. A run has failed when its object
says so, or when one pod has failed and none is alive any more (the object's own status lags its pods by seconds). It
has succeeded when all pods have; then the first pod's termination message must hold the facts. A lost message of a
failed pod costs nothing but its sentence; a success without facts counts as a failure of cause Crash, whose new try
re-emits the finished report at once.

A memory of objects may strip everything but these paths, which are all that launchers read:
    all      apiVersion, kind, metadata.{name,namespace,uid,labels,annotations,creationTimestamp,deletionTimestamp}
    Job      spec.{completions,suspend}, spec.template.spec.containers[].{name,args,resources.limits},
             status.{conditions,startTime,completionTime}
    JobSet   spec.suspend, spec.replicatedJobs[].template.spec.{completions,template.spec.containers as above},
             status.conditions
    Pod      metadata.deletionGracePeriodSeconds,
             status.{phase,reason,message,conditions}, status.containerStatuses[].{name,image,state}
    Workload metadata.name, spec.active, status.conditions[].{type,status,message}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError
from dapt_contract.failure import PRECEDENCE, Cause
from dapt_contract.run_identity import RunIdentity
from dapt_operator.api import names
from dapt_operator.launchers.labels import ANNOTATION_ACCELERATOR, identity_of
from dapt_operator.launchers.observe.pod_states import (
    MAX_SENTENCE,
    Pod,
    newest,
    parse_time,
    peers_to_end,
    read_pod,
)
from dapt_operator.launchers.observe.pod_waiting import refusal_of
from dapt_operator.launchers.observe.quota import quota_of
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import Children, Hindrance, Manifest, RunPhase, RunState

_LATEST = datetime.max.replace(tzinfo=UTC)
LOST_MESSAGE = (
    "the run succeeded but its termination message is lost ({why}); a new try repeats it from the report"
)
TAMPERED = (
    "ConfigMap {name} was changed after it was written (its stage.json has SHA-256 {found}, the run was started with"
    " {expected}): delete the ConfigMap, then the stage starts anew"
)


@dataclass(frozen=True)
class Gang:
    """The object that holds a run's pods, whatever its kind."""

    kind: str
    completions: int
    """Pods."""
    suspended: bool
    pod_spec: Mapping[str, Any]
    complete: Mapping[str, Any] | None
    """Its condition of success; None while it has none."""
    failed: Mapping[str, Any] | None
    deadline_passed: bool = False
    """Whether it failed because of its deadline."""
    started: datetime | None = None


def true_conditions(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """Conditions that hold, by type."""
    found = (manifest.get("status") or {}).get("conditions") or []
    return {str(item.get("type")): item for item in found if item.get("status") == "True"}


def fold_all(
    children: Children, now: datetime, read: Callable[[Manifest], Gang | None]
) -> tuple[RunState, ...]:
    """The state of every run whose object `read` knows, oldest fence first.

    Args:
        children: everything that was found.
        now: aware, UTC.
        read: the launcher's reading of its own kind of object; None for any other.
    """
    pods_by_run: dict[str, list[Manifest]] = {}
    for pod in children.pods:
        owner = identity_of(pod)
        if owner is not None:
            pods_by_run.setdefault(owner.key, []).append(pod)
    found = []
    for item in children.jobs:
        identity = identity_of(item)
        gang = read(item) if identity is not None else None
        if identity is not None and gang is not None:
            found.append(_fold(identity, item, gang, pods_by_run.get(identity.key, []), children, now))
    return tuple(sorted(found, key=lambda state: (state.identity.fence, state.object_name)))


def _fold(
    identity: RunIdentity,
    manifest: Manifest,
    gang: Gang,
    pods: Sequence[Manifest],
    children: Children,
    now: datetime,
) -> RunState:
    metadata = manifest["metadata"]
    name, labels = metadata["name"], metadata["labels"]
    kind = labels.get(names.LABEL_KIND, identity.stage)
    seen = newest(read_pod(pod, identity, kind, now) for pod in pods)
    starts = [pod.started for pod in seen if pod.started] or ([gang.started] if gang.started else [])
    ends = [pod.finished for pod in seen if pod.finished]
    base: dict[str, Any] = {
        "identity": identity,
        "kind": kind,
        "config_digest": (metadata.get("annotations") or {}).get(names.ANNOTATION_CONFIG_DIGEST, ""),
        "object_name": name,
        "object_kind": gang.kind,
        "created": parse_time(metadata.get("creationTimestamp")),
        "started": min(starts, default=None),
        "accelerators": gang.completions * _accelerators(metadata, gang),
        "progress": children.progress.get(name),
        "deleting": bool(metadata.get("deletionTimestamp")),
    }
    alive = any(pod.alive for pod in seen)
    succeeded = sum(pod.phase == "Succeeded" for pod in seen)
    if gang.complete is not None or (succeeded >= gang.completions and not alive):
        done = max(ends, default=_transition(gang.complete))
        return _succeeded(seen, base | {"completed": done})
    failed = [pod for pod in seen if pod.failed]
    if gang.failed is not None or (failed and not alive):
        done = max(ends, default=_transition(gang.failed))
        return _failed(failed, gang, children.logs, base | {"completed": done})
    base |= _tampering(name, gang, seen, children)
    quota, said = quota_of(labels, suspended=gang.suspended, workload=children.workloads.get(name))
    base |= {"quota": quota, "quota_message": said}
    if any(pod.running for pod in seen) or failed or succeeded:
        return RunState(
            phase=RunPhase.RUNNING, peers_to_end=peers_to_end(seen, now), ailing=bool(failed), **base
        )
    return _pending(gang, seen, base, children.refusals.get(name, ""))


def _pending(gang: Gang, pods: Sequence[Pod], base: dict[str, Any], refusal: str) -> RunState:
    waiting = next((pod.waiting for pod in pods if pod.waiting), "")
    refused = refusal_of(refusal) if refusal and not pods else None
    if isinstance(refused, str):
        waiting = refused
    if not waiting and gang.suspended:
        waiting = base["quota_message"] or "Suspended: the Job waits to be admitted"
    base["started"] = None  # a Job starts before its pods do
    return RunState(
        phase=RunPhase.PENDING,
        message=waiting,
        waiting_reason=waiting.partition(":")[0],
        hindrance=next((pod.hindrance for pod in pods if pod.hindrance), None)
        or (refused if isinstance(refused, Hindrance) else None),
        **base,
    )


def _tampering(name: str, gang: Gang, pods: Sequence[Pod], children: Children) -> dict[str, Any]:
    """Whether the file that the run was started with is still the one that its pods would read."""
    if name not in children.stage_digests:
        return {}
    found, expected = children.stage_digests[name], _expected_digest(gang)
    if found is None:
        started = sum(pod.running or not pod.alive for pod in pods)
        return {"stage_file_lost": started < gang.completions}
    if expected and found != expected:
        return {"tampered": TAMPERED.format(name=name, found=found[:12], expected=expected[:12])}
    return {}


def _expected_digest(gang: Gang) -> str:
    arguments = [str(item) for item in _trainer(gang).get("args") or []]
    place = arguments.index("--sha256") + 1 if "--sha256" in arguments else len(arguments)
    return arguments[place] if place < len(arguments) else ""


def _succeeded(pods: Sequence[Pod], base: dict[str, Any]) -> RunState:
    first = next((pod for pod in pods if pod.index == 0), None)
    why = first.why_lost if first else "the pod is gone"
    facts: Contract | None = None
    if first is not None and first.message is not None:
        try:
            facts = first.message.parsed_facts()
            why = "it holds no facts"
        except ContractError as error:
            why = str(error)
    if first is None or facts is None:
        sentence = LOST_MESSAGE.format(why=why)
        return RunState(phase=RunPhase.FAILED, cause=Cause.CRASH, exit_code=0, message=sentence, **base)
    return RunState(phase=RunPhase.SUCCEEDED, exit_code=0, message=first.sentence, facts=facts, **base)


def _failed(
    failed: Sequence[Pod], gang: Gang, logs: Mapping[str, tuple[str, ...]], base: dict[str, Any]
) -> RunState:
    """The first cause by precedence among the pods; the object's own reason where it is not a pod's failure."""
    condition, deadline = gang.failed or {}, gang.deadline_passed
    causes = [(pod, pod.cause or Cause.CRASH) for pod in failed]
    if deadline:
        # The controller stops the pods at the deadline: being stopped or killed is then its effect, not a cause.
        effects = {Cause.STOPPED, Cause.INFRASTRUCTURE, Cause.DISRUPTION, Cause.CRASH}
        causes = [(pod, cause) for pod, cause in causes if cause not in effects]
    # Peers are stopped because one pod failed, or fail because it is gone.
    first_hand = [item for item in causes if not item[0].effect] or causes
    causes = [item for item in first_hand if item[1] != Cause.STOPPED] or first_hand
    facts = _facts_despite_failure(failed)
    if not causes:
        cause = Cause.DEADLINE if deadline else Cause.INFRASTRUCTURE
        sentence = condition.get("message") or (
            f"the deadline of the {gang.kind} passed"
            if deadline
            else f"the {gang.kind} failed and its pods are gone"
        )
        return RunState(
            phase=RunPhase.FAILED, cause=cause, message=str(sentence)[:MAX_SENTENCE], facts=facts, **base
        )
    if gang.suspended:
        # Only its queue suspends a Job that ran: the pods were deleted for somebody else's sake.
        taken = (Cause.INFRASTRUCTURE, Cause.STOPPED)
        causes = [
            (pod, Cause.DISRUPTION if pod.effect and cause in taken else cause) for pod, cause in causes
        ]
    pod, cause = min(causes, key=lambda item: (PRECEDENCE.index(item[1]), item[0].finished or _LATEST))
    return RunState(
        phase=RunPhase.FAILED,
        cause=cause,
        exit_code=pod.exit_code,
        message=pod.sentence,
        facts=facts,
        last_log_lines=tuple(logs.get(pod.name, ())),
        **base,
    )


def _facts_despite_failure(pods: Sequence[Pod]) -> Contract | None:
    for pod in pods:
        if pod.index == 0 and pod.message is not None:
            try:
                return pod.message.parsed_facts()
            except ContractError:
                return None
    return None


def _trainer(gang: Gang) -> Mapping[str, Any]:
    containers = gang.pod_spec.get("containers") or []
    found: Mapping[str, Any] = next((item for item in containers if item.get("name") == CONTAINER), {})
    return found


def _accelerators(metadata: Mapping[str, Any], gang: Gang) -> int:
    """Accelerators of one pod: the trainer's limit of the resource that render noted on the object."""
    resource = (metadata.get("annotations") or {}).get(ANNOTATION_ACCELERATOR)
    held = str(((_trainer(gang).get("resources") or {}).get("limits") or {}).get(resource, "0"))
    return int(held) if held.isdigit() else 0


def _transition(condition: Mapping[str, Any] | None) -> datetime | None:
    return parse_time((condition or {}).get("lastTransitionTime"))
