"""What the cluster in memory keeps, what a script may say, and the shapes of pods."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from dapt_contract.base import Contract
from dapt_contract.failure import Cause
from dapt_contract.message import RunEnd, encode_message
from dapt_contract.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_operator.cluster.port import Event
from dapt_operator.stage_run import Manifest

GANGS: Final = ("Job", "JobSet")
"""Kinds of object that hold pods."""
INDEX: Final = "batch.kubernetes.io/job-completion-index"
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Ends:
    """How the scripted kubelet ends a run."""

    exit_code: int = 0
    facts: Contract | None = None
    message: str = ""
    cause: Cause | None = None
    oom_killed: bool = False
    disrupted: bool = False
    lose_message: bool = False


@dataclass(frozen=True)
class Stays:
    """The run goes on, with this reading."""

    progress: Progress | None = None
    pending_reason: str = ""
    """The scheduler's, as `Reason: message`."""
    waiting: str = ""
    """The kubelet's, as `Reason: message`."""


Script = Callable[[StageFile], Ends | Stays]
"""What becomes of a run."""


@dataclass
class Stored:
    """One adaptation with all that belongs to it."""

    resource: dict[str, Any]
    version: int = 1
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    progress: dict[str, Progress] = field(default_factory=dict)
    logs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    taken: dict[tuple[str, str], str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Kinds that the cluster refuses, with its sentence."""
    """Names of objects that are somebody else's, and whose."""

    def gangs(self) -> list[dict[str, Any]]:
        """Jobs and JobSets, oldest first."""
        return [item for (kind, _), item in self.objects.items() if kind in GANGS]

    def pods_of(self, name: str) -> list[dict[str, Any]]:
        """Pods of a gang."""
        return [
            item
            for (kind, pod), item in self.objects.items()
            if kind == "Pod" and pod.rpartition("-")[0] == name
        ]


def job_spec(gang: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of the Job of a gang, whichever object holds it."""
    spec: Mapping[str, Any] = gang["spec"]
    if gang["kind"] == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    return spec


def is_over(gang: Mapping[str, Any]) -> bool:
    """Whether a gang has an end."""
    return bool(gang["status"].get("conditions"))


def may_run(gang: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> bool:
    """Whether processes of a gang are there, or may come.

    Args:
        gang: a Job or JobSet.
        pods: its own.
    """
    states = [is_alive(pod) for pod in pods]
    return not is_over(gang) and (any(states) or not states)


def is_alive(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has no end."""
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def pod_of(gang: Mapping[str, Any], index: int, status: dict[str, Any]) -> dict[str, Any]:
    """One pod of a gang."""
    metadata = gang["metadata"]
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-{index}",
            "namespace": metadata["namespace"],
            "labels": dict(metadata["labels"]),
            "annotations": {INDEX: str(index)},
        },
        "status": status,
    }


def pending_status(outcome: Stays) -> dict[str, Any]:
    """Of a pod that waits for a node, or on its node for something else."""
    if outcome.waiting:
        reason, _, message = outcome.waiting.partition(": ")
        image = "registry.example/dapt-trainer:1.0.0"
        state = {"waiting": {"reason": reason, "message": message}}
        container = {"name": "trainer", "image": image, "state": state}
        return {"phase": "Pending", "containerStatuses": [container]}
    reason, _, message = outcome.pending_reason.partition(": ")
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def running_status(started: str) -> dict[str, Any]:
    """Of a pod that runs since then."""
    container = {"name": "trainer", "state": {"running": {"startedAt": started}}}
    return {"phase": "Running", "containerStatuses": [container]}


def started_at(pod: Mapping[str, Any] | None) -> str | None:
    """When a running pod started."""
    containers = ((pod or {}).get("status") or {}).get("containerStatuses") or [{}]
    found: str | None = containers[0].get("state", {}).get("running", {}).get("startedAt")
    return found


def ended_status(stage: StageFile, outcome: Ends, started: str, finished: str) -> dict[str, Any]:
    """Of a pod that has ended."""
    end = RunEnd(outcome.exit_code, outcome.cause, outcome.message)
    text = encode_message(stage.run.key, stage.kind, end, facts=outcome.facts)
    done = outcome.exit_code == 0 and not outcome.disrupted
    ended = {
        "exitCode": outcome.exit_code,
        "reason": "OOMKilled" if outcome.oom_killed else "Completed" if done else "Error",
        "message": "" if outcome.lose_message else text,
        "startedAt": started,
        "finishedAt": finished,
    }
    status: dict[str, Any] = {
        "phase": "Succeeded" if done else "Failed",
        "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}],
    }
    if outcome.disrupted:
        status["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        ]
    return status


def gang_status(gang: Mapping[str, Any], *, done: bool, started: str, finished: str) -> dict[str, Any]:
    """Of a gang that has ended."""
    success = "Completed" if gang["kind"] == "JobSet" else "Complete"
    condition = {
        "type": success if done else "Failed",
        "status": "True",
        "reason": "" if done else "BackoffLimitExceeded",
        "lastTransitionTime": finished,
    }
    return {"conditions": [condition], "startTime": started}


def workload_of(gang: Manifest, sentence: str) -> Manifest:
    """What Kueue makes of a suspended gang: no quota yet, and why."""
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": sentence}
    return {
        "kind": "Workload",
        "metadata": {"name": gang["metadata"]["name"]},
        "status": {"conditions": [condition]},
    }


def time_text(moment: datetime) -> str:
    """As Kubernetes writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def copy(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that shares nothing, as an API server gives."""
    copied: dict[str, Any] = json.loads(json.dumps(value, default=dict))
    return copied
