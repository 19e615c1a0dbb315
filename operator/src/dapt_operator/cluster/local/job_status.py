"""Job- and Pod-shaped status, as the Job controller and the kubelet write it. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.stage_run import Manifest, plain

COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
TERMINAL_PHASES = ("Succeeded", "Failed")


def pod_of(job: Manifest, index: int) -> dict[str, Any]:
    """The pod of one completion index, waiting to start."""
    template = job["spec"]["template"]
    metadata = plain(template.get("metadata") or {})
    name = job["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata
        | {
            "name": f"{name}-{index}",
            "namespace": job["metadata"].get("namespace", ""),
            "labels": (metadata.get("labels") or {}) | {"job-name": name, COMPLETION_INDEX: str(index)},
            "annotations": (metadata.get("annotations") or {}) | {COMPLETION_INDEX: str(index)},
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
            ],
        },
        "spec": plain(template["spec"]),
        "status": {"phase": "Pending"},
    }


def unscheduled(pod: Manifest, why: str) -> dict[str, Any]:
    """The pod while there is no room for it, as the scheduler says it."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
    return {**pod, "status": {"phase": "Pending", "conditions": [condition]}}


def running(pod: Manifest) -> dict[str, Any]:
    """The pod with its container started now."""
    now = micro_time()
    return _with_container(pod, {"phase": "Running", "startTime": now}, {"running": {"startedAt": now}})


def ended(
    pod: Manifest,
    exit_code: int,
    message: str,
    *,
    disrupted: str | None = None,
    reason: str | None = None,
    at: datetime | None = None,
) -> dict[str, Any]:
    """The pod after its container ended.

    Args:
        pod: as it was.
        exit_code: as a container has it, 128 + signal for a kill.
        message: the termination message.
        disrupted: why the pod was taken away, for a DisruptionTarget condition.
        reason: the kubelet's; None: Completed or Error, by the exit code.
        at: when; None: now.
    """
    before = _container_state(pod).get("running") or {}
    status: dict[str, Any] = {"phase": "Succeeded" if exit_code == 0 else "Failed"}
    if disrupted is not None:
        status["conditions"] = [_condition("DisruptionTarget", "LocalRunEnded", disrupted)]
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "startedAt": before.get("startedAt"),
        "finishedAt": micro_time(at),
    } | ({"message": message} if message else {})
    kept = {name: value for name, value in (pod.get("status") or {}).items() if name == "startTime"}
    return _with_container(pod, kept | status, {"terminated": terminated})


def is_over(pod: Manifest) -> bool:
    """Whether a pod has ended."""
    return (pod.get("status") or {}).get("phase") in TERMINAL_PHASES


def job_status(job: Manifest, pods: Sequence[Manifest], failure: tuple[str, str] | None) -> dict[str, Any]:
    """Status of a Job from its pods.

    Args:
        job: as it was; conditions already there stay.
        pods: of all completion indexes.
        failure: reason and message of what fails the Job; None: nothing so far.
    """
    before = job.get("status") or {}
    conditions = list(before.get("conditions") or [])
    phases = [(pod.get("status") or {}).get("phase") for pod in pods]
    over = all(phase in TERMINAL_PHASES for phase in phases)
    complete = bool(pods) and all(phase == "Succeeded" for phase in phases)

    def add(kind: str, reason: str, message: str) -> None:
        if not any(condition["type"] == kind for condition in conditions):
            conditions.append(_condition(kind, reason, message))

    status: dict[str, Any] = {
        "startTime": before.get("startTime") or micro_time(),
        "active": sum(phase not in TERMINAL_PHASES for phase in phases),
        "succeeded": phases.count("Succeeded"),
        "failed": phases.count("Failed"),
    }
    if complete:
        add("SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")
        add("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        status["completionTime"] = micro_time()
    elif failure is not None:
        add("FailureTarget", *failure)
        if over:
            add("Failed", *failure)
    return status | {"conditions": conditions}


def suspended_status() -> dict[str, Any]:
    """Status of a Job that waits to be admitted."""
    return {"active": 0, "conditions": [_condition("Suspended", "JobSuspended", "Job suspended")]}


def is_finished(job: Manifest) -> bool:
    """Whether a Job has ended for good."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(item["type"] in ("Complete", "Failed") and item["status"] == "True" for item in conditions)


def _condition(kind: str, reason: str, message: str) -> dict[str, str]:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": micro_time(),
    }


def _container_state(pod: Manifest) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    state: Mapping[str, Any] = statuses[0].get("state") or {}
    return state


def _with_container(pod: Manifest, status: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    name = pod["spec"]["containers"][0].get("name", "")
    container = {"name": name, "state": state, "restartCount": 0}
    return {**pod, "status": {**status, "containerStatuses": [container]}}
