"""Defines what the cluster in memory stores, what a script may return, and the status of its pods."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dapt_contract.base import Contract
from dapt_contract.pod.environment import COMPLETION_INDEX
from dapt_contract.pod.failure import Cause
from dapt_contract.pod.message import RunEnd, encode_message
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_operator.api.v1alpha1.profile import ProfileEvaluation
from dapt_operator.cluster.port import Event
from dapt_operator.launchers.observe.containers import has_ended
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import HOLDER_KINDS, JsonObject, Manifest


class OperatorKilledError(Exception):
    """Stands for the death of the operator at a verb."""


@dataclass(frozen=True)
class Ends:
    """Ends a run: what all its pods report."""

    exit_code: int = 0
    facts: Contract | None = None
    message: str = ""
    cause: Cause | None = None
    oom_killed: bool = False
    disrupted: bool = False
    lose_message: bool = False
    lingers: bool = False
    """Whether a sidecar of each pod goes on, so that the Job does not end."""


@dataclass(frozen=True)
class Stays:
    """Leaves a run alive: running, or pending when a reason is given."""

    progress: Progress | None = None
    """Live reading of the run."""
    pending_reason: str = ""
    """Why the scheduler does not place its pod, as `Reason: message`."""
    waiting: str = ""
    """Why the kubelet does not start its container, as `Reason: message`."""


Script = Callable[[StageFile], Ends | Stays]
"""Decides, from the stage.json of a live run, what happens to the run."""


@dataclass
class Stored:
    """Holds one adaptation with all that belongs to it."""

    resource: JsonObject
    version: int = 1
    objects: dict[tuple[str, str], JsonObject] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    progress: dict[str, Progress] = field(default_factory=dict)
    logs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    taken: dict[tuple[str, str], str] = field(default_factory=dict)
    """Kind and name of objects that belong to someone else, with whose they are."""
    refused: dict[str, str] = field(default_factory=dict)
    """Kinds that the cluster refuses, with its message."""
    read_stage_files: dict[str, str] = field(default_factory=dict)
    """Content of stage.json as started pods have read it, by name of the Job or JobSet."""

    unreported: set[tuple[str, str]] = field(default_factory=set)
    """Jobs and JobSets, by kind and name, that no watch has reported yet."""

    def gangs(self) -> list[JsonObject]:
        """Return the Jobs and JobSets, oldest first."""
        return [item for (kind, _), item in self.objects.items() if kind in HOLDER_KINDS]

    def reported_gangs(self) -> list[JsonObject]:
        """Return those that a watch has reported."""
        return [
            item
            for place, item in self.objects.items()
            if place[0] in HOLDER_KINDS and place not in self.unreported
        ]

    def pods_of(self, name: str) -> list[JsonObject]:
        """Return the pods of a Job or JobSet."""
        return [
            item
            for (kind, pod), item in self.objects.items()
            if kind == "Pod" and pod.rpartition("-")[0] == name
        ]


def job_spec(gang: Manifest) -> Manifest:
    """Return the spec of the Job of a gang, whichever object holds it."""
    spec: Manifest = gang["spec"]
    if gang["kind"] == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    return spec


def job_uid(gang: Manifest) -> str:
    """Return the uid of the Job of a gang: the gang itself, or the Job that a JobSet has created."""
    uid = str(gang["metadata"]["uid"])
    return f"{uid}-job" if gang["kind"] == "JobSet" else uid


def is_over(gang: Manifest) -> bool:
    """Whether a gang has ended."""
    return bool(gang["status"].get("conditions"))


def may_run(gang: Manifest, pods: Iterable[Manifest]) -> bool:
    """Whether processes of a gang may exist or may still start.

    Args:
        gang: a Job or JobSet.
        pods: of the gang.
    """
    ends = [has_ended(pod) for pod in pods]
    # A controller creates no pods of an object that is being deleted.
    has_pods_to_come = not ends and not gang["metadata"].get("deletionTimestamp")
    return not is_over(gang) and (has_pods_to_come or not all(ends))


def pod_of(gang: Manifest, index: int, status: JsonObject) -> JsonObject:
    """Return one pod of a gang."""
    metadata = gang["metadata"]
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{metadata['name']}-{index}",
            "namespace": metadata["namespace"],
            "labels": dict(metadata["labels"]),
            "annotations": {COMPLETION_INDEX: str(index)},
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": metadata["name"],
                    "uid": job_uid(gang),
                    "controller": True,
                }
            ],
        },
        "status": status,
    }


def pending_status(outcome: Stays) -> JsonObject:
    """Return the status of a pod that waits for a node, or on its node for something else."""
    if outcome.waiting:
        reason, _, message = outcome.waiting.partition(": ")
        image = "registry.example/dapt-trainer:1.0.0"
        state = {"waiting": {"reason": reason, "message": message}}
        container = {"name": CONTAINER, "image": image, "state": state}
        return {"phase": "Pending", "containerStatuses": [container]}
    reason, _, message = outcome.pending_reason.partition(": ")
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def running_status(started: str) -> JsonObject:
    """Return the status of a pod that has been running since `started`."""
    container = {"name": CONTAINER, "state": {"running": {"startedAt": started}}}
    return {"phase": "Running", "containerStatuses": [container]}


def started_at(pod: Manifest | None) -> str | None:
    """Return when a running pod started; None for any other pod."""
    containers = ((pod or {}).get("status") or {}).get("containerStatuses") or [{}]
    started: str | None = containers[0].get("state", {}).get("running", {}).get("startedAt")
    return started


def ended_status(stage: StageFile, outcome: Ends, started: str, finished: str) -> JsonObject:
    """Return the status of a pod that has ended."""
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
    status: JsonObject = {
        "phase": "Succeeded" if done else "Failed",
        "containerStatuses": [{"name": CONTAINER, "state": {"terminated": ended}}],
    }
    if outcome.lingers:
        sidecar = {"name": "sidecar", "state": {"running": {"startedAt": started}}}
        status |= {"phase": "Running", "containerStatuses": [*status["containerStatuses"], sidecar]}
    if outcome.disrupted:
        status["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        ]
    return status


def gang_status(gang: Manifest, *, done: bool, started: str, finished: str) -> JsonObject:
    """Return the status of a gang that has ended."""
    success = "Completed" if gang["kind"] == "JobSet" else "Complete"
    condition = {
        "type": success if done else "Failed",
        "status": "True",
        "reason": "" if done else "BackoffLimitExceeded",
        "lastTransitionTime": finished,
    }
    return {"conditions": [condition], "startTime": started}


def workload_of(gang: Manifest, sentence: str) -> Manifest:
    """Return Kueue's Workload of a suspended gang: no quota yet, and why."""
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": sentence}
    return {
        "kind": "Workload",
        "metadata": {"name": gang["metadata"]["name"]},
        "status": {"conditions": [condition]},
    }


def copy(value: Manifest) -> JsonObject:
    """Return a copy that shares nothing with the value, as an API server does."""
    copied: JsonObject = json.loads(json.dumps(value, default=dict))
    return copied


def max_evaluations(profile: Manifest | None) -> int:
    """Return the number of evaluations that a profile allows at the same time."""
    concurrency = (((profile or {}).get("spec") or {}).get("evaluation") or {}).get("concurrency")
    return ProfileEvaluation().concurrency if concurrency is None else int(concurrency)
