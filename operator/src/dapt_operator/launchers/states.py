"""From a Job and its pods to the state of a run.

Each pod counts into exactly one run (by its labels), each run has exactly one phase. A run has failed when its Job
says so, or when one pod has failed and none is alive any more (the Job's own status lags its pods by seconds). It has
succeeded when all pods have; then the first pod's termination message must hold the facts. What comes from pods is
untrusted: a message that is missing, too long, malformed or of another run is a lost message. A lost message of a
failed pod costs nothing but its sentence; a success without facts counts as a failure of cause Crash, whose new try
re-emits the finished report at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError
from dapt_contract.failure import PRECEDENCE, Cause, cause_of_exit_code
from dapt_contract.message import StageMessage, decode_message
from dapt_contract.run import RunIdentity
from dapt_operator.api import names
from dapt_operator.api.run import Children, Manifest, RunPhase, RunState
from dapt_operator.launchers.labels import ANNOTATION_ACCELERATOR, identity_of
from dapt_operator.launchers.pod import COMPLETION_INDEX, CONTAINER

MAX_SENTENCE = 4000
_LATEST = datetime.max.replace(tzinfo=UTC)
_NEVER_RAN = ("StartError", "ContainerCannotRun")
LOST_MESSAGE = (
    "the run succeeded but its termination message is lost ({why}); a new try repeats it from the report"
)


@dataclass(frozen=True)
class _Pod:
    """What one pod says."""

    index: int
    phase: str
    exit_code: int | None = None
    cause: Cause | None = None
    sentence: str = ""
    effect: bool = False
    message: StageMessage | None = None
    why_lost: str = "the pod is gone"
    waiting: str = ""
    started: datetime | None = None
    finished: datetime | None = None

    @property
    def alive(self) -> bool:
        return self.phase not in ("Succeeded", "Failed")


def states(children: Children, now: datetime) -> tuple[RunState, ...]:  # noqa: ARG001
    """The state of every run whose Job is there, oldest fence first."""
    pods_by_run: dict[str, list[Manifest]] = {}
    for pod in children.pods:
        owner = identity_of(pod)
        if owner is not None:
            pods_by_run.setdefault(owner.key, []).append(pod)
    found = []
    for job in children.jobs:
        identity = identity_of(job)
        if identity is not None:
            found.append(_fold(identity, job, pods_by_run.get(identity.key, []), children))
    return tuple(sorted(found, key=lambda state: (state.identity.fence, state.object_name)))


def _fold(identity: RunIdentity, job: Manifest, pods: Sequence[Manifest], children: Children) -> RunState:
    metadata, status = job["metadata"], job.get("status") or {}
    kind = metadata["labels"].get(names.LABEL_KIND, identity.stage)
    seen = sorted((_read_pod(pod, identity, kind) for pod in pods), key=lambda pod: pod.index)
    conditions = {
        item["type"]: item for item in status.get("conditions") or [] if item.get("status") == "True"
    }
    completions = int(job["spec"].get("completions", 1))
    starts = [pod.started for pod in seen if pod.started] or _times(status.get("startTime"))
    ends = [pod.finished for pod in seen if pod.finished]
    base: dict[str, Any] = {
        "identity": identity,
        "kind": kind,
        "config_digest": (metadata.get("annotations") or {}).get(names.ANNOTATION_CONFIG_DIGEST, ""),
        "object_name": metadata["name"],
        "created": _time(metadata.get("creationTimestamp")),
        "started": min(starts, default=None),
        "accelerators": completions * _accelerators(job),
        "progress": children.progress.get(metadata["name"]),
    }
    succeeded = sum(pod.phase == "Succeeded" for pod in seen)
    if "Complete" in conditions or (succeeded >= completions and not any(pod.alive for pod in seen)):
        done = max(ends, default=_time(status.get("completionTime")))
        return _succeeded(seen, base | {"completed": done})
    failed = [pod for pod in seen if pod.phase == "Failed"]
    over = failed and not any(pod.alive for pod in seen)
    if "Failed" in conditions or over:
        done = max(ends, default=_time((conditions.get("Failed") or {}).get("lastTransitionTime")))
        reason = conditions.get("Failed") or conditions.get("FailureTarget") or {}
        return _failed(failed, reason, base | {"completed": done})
    if any(pod.phase == "Running" for pod in seen) or failed or succeeded:
        return RunState(phase=RunPhase.RUNNING, **base)
    waiting = next((pod.waiting for pod in seen if pod.waiting), "")
    if not waiting and job["spec"].get("suspend"):
        waiting = "Suspended: the Job waits to be admitted"
    return RunState(phase=RunPhase.PENDING, message=waiting, waiting_reason=waiting.partition(":")[0], **base)


def _succeeded(pods: Sequence[_Pod], base: dict[str, Any]) -> RunState:
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


def _failed(failed: Sequence[_Pod], condition: Mapping[str, Any], base: dict[str, Any]) -> RunState:
    """The first cause by precedence among the pods; the Job's own reason where it is not a pod's failure."""
    deadline = condition.get("reason") == "DeadlineExceeded"
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
            "the deadline of the Job passed" if deadline else "the Job failed and its pods are gone"
        )
        return RunState(
            phase=RunPhase.FAILED, cause=cause, message=str(sentence)[:MAX_SENTENCE], facts=facts, **base
        )
    pod, cause = min(causes, key=lambda item: (PRECEDENCE.index(item[1]), item[0].finished or _LATEST))
    return RunState(
        phase=RunPhase.FAILED, cause=cause, exit_code=pod.exit_code, message=pod.sentence, facts=facts, **base
    )


def _facts_despite_failure(pods: Sequence[_Pod]) -> Contract | None:
    for pod in pods:
        if pod.index == 0 and pod.message is not None:
            try:
                return pod.message.parsed_facts()
            except ContractError:
                return None
    return None


def _read_pod(pod: Manifest, identity: RunIdentity, kind: str) -> _Pod:
    metadata, status = pod["metadata"], pod.get("status") or {}
    index = _index(metadata)
    phase = str(status.get("phase", "Pending"))
    container: Mapping[str, Any] = next(
        (item for item in status.get("containerStatuses") or [] if item.get("name") == CONTAINER), {}
    )
    state = container.get("state") or {}
    ended = state.get("terminated")
    disrupted = next(
        (
            item
            for item in status.get("conditions") or []
            if item.get("type") == "DisruptionTarget" and item.get("status") == "True"
        ),
        None,
    )
    if phase not in ("Succeeded", "Failed"):
        running = state.get("running") or {}
        return _Pod(index, phase, waiting=_waiting(status, state), started=_time(running.get("startedAt")))
    if ended is None:
        lost = Cause.DISRUPTION if disrupted else Cause.INFRASTRUCTURE
        sentence = (
            _sentence(disrupted or {}) or _sentence(status) or "the pod ended before its container started"
        )
        return _Pod(index, phase, None, lost if phase == "Failed" else None, sentence)
    code = int(ended.get("exitCode", 1))
    if ended.get("reason") in _NEVER_RAN:
        return _Pod(index, phase, code, Cause.INFRASTRUCTURE, _sentence(ended))
    message, why = _decode(str(ended.get("message") or ""), identity, kind)
    cause = cause_of_exit_code(code, oom_killed=ended.get("reason") == "OOMKilled")
    if message is not None and message.cause is not None and message.exit_code == code and code != 0:
        cause = message.cause if cause is not Cause.OUT_OF_MEMORY else cause
    if disrupted and cause not in (None, *PRECEDENCE[:4]):
        cause = Cause.DISRUPTION
    sentence = message.message if message else ""
    if phase == "Failed" and not sentence:
        sentence = _sentence(disrupted or {}) or f"the container ended with exit code {code} ({why})"
    return _Pod(
        index=index,
        phase=phase,
        exit_code=code,
        cause=cause,
        sentence=sentence[:MAX_SENTENCE],
        effect=message is not None and message.effect,
        message=message,
        why_lost=why,
        started=_time(ended.get("startedAt")),
        finished=_time(ended.get("finishedAt")),
    )


def _decode(text: str, identity: RunIdentity, kind: str) -> tuple[StageMessage | None, str]:
    """The message, or None and why it is lost."""
    if not text:
        return None, "no termination message"
    try:
        message = decode_message(text)
    except ContractError as error:
        return None, str(error)
    unread = not message.key and message.exit_code != 0  # the agent could not read who it is
    if (message.key != identity.key and not unread) or message.kind != kind:
        return None, "the termination message is that of another run"
    return message, ""


def _waiting(status: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The kubelet's reason, else the scheduler's, as `Reason: sentence`."""
    waiting = state.get("waiting") or {}
    if waiting.get("reason") and waiting["reason"] not in ("ContainerCreating", "PodInitializing"):
        return _sentence(waiting)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _sentence(condition)
    return _sentence(waiting)


def _sentence(item: Mapping[str, Any]) -> str:
    reason, message = str(item.get("reason") or ""), str(item.get("message") or "")
    return (f"{reason}: {message}" if reason and message else reason or message)[:MAX_SENTENCE]


def _index(metadata: Mapping[str, Any]) -> int:
    annotations = metadata.get("annotations") or {}
    labels = metadata.get("labels") or {}
    text = annotations.get(COMPLETION_INDEX, labels.get(COMPLETION_INDEX, "0"))
    return int(text) if str(text).isdigit() else 0


def _accelerators(job: Manifest) -> int:
    """Accelerators of one pod: the trainer's limit of the resource that render noted on the Job."""
    resource = (job["metadata"].get("annotations") or {}).get(ANNOTATION_ACCELERATOR)
    containers = job["spec"]["template"]["spec"]["containers"]
    trainer: Mapping[str, Any] = next((item for item in containers if item.get("name") == CONTAINER), {})
    held = str(((trainer.get("resources") or {}).get("limits") or {}).get(resource, "0"))
    return int(held) if held.isdigit() else 0


def _times(value: Any) -> list[datetime]:
    time = _time(value)
    return [time] if time else []


def _time(value: Any) -> datetime | None:
    """Kubernetes' RFC 3339; None for anything else."""
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")) if value else None
    except ValueError:
        return None
