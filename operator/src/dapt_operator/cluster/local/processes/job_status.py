"""Builds the status of Jobs and pods as the Job controller and the kubelet write it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from dapt_contract.pod.environment import COMPLETION_INDEX
from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.pod.message import RunEnd, encode_message
from dapt_operator.api.names import LABEL_KIND
from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.launchers.observe.containers import ENDED_PHASES
from dapt_operator.launchers.observe.run_states import true_conditions
from dapt_operator.stage_run import JsonObject, Manifest, plain

_STOPPED_BY_USER: Final = "local.dapt.dev/stopped-by-user"
STOPPED_UNSAVED: Final = (
    "the local run was stopped before this stage could save; the next run continues from what is complete"
)


def pod_of(job: Manifest, index: int) -> JsonObject:
    """Return the pod of one completion index, pending."""
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
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": name,
                    "uid": job["metadata"]["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": plain(template["spec"]),
        "status": {"phase": "Pending"},
    }


def unscheduled(pod: Manifest, why: str) -> JsonObject:
    """Return the pod with the scheduler's condition of a pod that fits nowhere."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
    return {**pod, "status": {"phase": "Pending", "conditions": [condition]}}


def running(pod: Manifest) -> JsonObject:
    """Return the pod with its container started now."""
    now = micro_time()
    return _with_container(pod, {"phase": "Running", "startTime": now}, {"running": {"startedAt": now}})


def ended(
    pod: Manifest,
    exit_code: int,
    message: str,
    *,
    disrupted: str | None = None,
    reason: str | None = None,
    ended_at: datetime | None = None,
) -> JsonObject:
    """Return the pod after its container ended.

    Args:
        pod: the pod before.
        exit_code: of the container; 128 + signal for a kill.
        message: the termination message.
        disrupted: why the pod was taken away, for a DisruptionTarget condition; None: it was not.
        reason: of the kubelet; None: Completed or Error, by the exit code.
        ended_at: None for now.
    """
    running_state = _container_state(pod).get("running") or {}
    status: JsonObject = {"phase": "Succeeded" if exit_code == 0 else "Failed"}
    if disrupted is not None:
        status["conditions"] = [_condition("DisruptionTarget", "LocalRunEnded", disrupted)]
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "startedAt": running_state.get("startedAt"),
        "finishedAt": micro_time(ended_at),
    } | ({"message": message} if message else {})
    kept = {name: value for name, value in (pod.get("status") or {}).items() if name == "startTime"}
    return _with_container(pod, kept | status, {"terminated": terminated})


def job_status(job: Manifest, pods: Sequence[Manifest], failure: tuple[str, str] | None) -> JsonObject:
    """Return the status of a Job.

    Args:
        job: the Job before; its conditions are kept.
        pods: of all completion indexes.
        failure: reason and message of what fails the Job; None while nothing does.
    """
    before = job.get("status") or {}
    conditions = list(before.get("conditions") or [])
    phases = [(pod.get("status") or {}).get("phase") for pod in pods]
    num_active = sum(phase not in ENDED_PHASES for phase in phases)
    is_complete = bool(pods) and all(phase == "Succeeded" for phase in phases)

    def add(kind: str, reason: str, message: str) -> None:
        # A condition keeps the time of its first transition.
        if not any(condition["type"] == kind for condition in conditions):
            conditions.append(_condition(kind, reason, message))

    status: JsonObject = {
        "startTime": before.get("startTime") or micro_time(),
        "active": num_active,
        "succeeded": phases.count("Succeeded"),
        "failed": phases.count("Failed"),
    }
    if is_complete:
        add("SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")
        add("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        status["completionTime"] = micro_time()
    elif failure is not None:
        add("FailureTarget", *failure)
        # As the Job controller does since Kubernetes 1.31: a Job is Failed only when none of its pods is active.
        if num_active == 0:
            add("Failed", *failure)
    return status | {"conditions": conditions}


def stopped(pod: Manifest, *, ended_at: datetime | None = None) -> JsonObject:
    """Return the pod after the user ended the local run before its stage could save: a stop, and no fault."""
    kind = str((pod["metadata"].get("labels") or {}).get(LABEL_KIND, ""))
    end = RunEnd(int(ExitCode.STOPPED), Cause.STOPPED, STOPPED_UNSAVED)
    # Without a run key, as an agent reports that was stopped before it knew which run it is.
    return ended(pod, int(ExitCode.STOPPED), encode_message("", kind, end), ended_at=ended_at)


def noted_as_stopped(job: Manifest) -> JsonObject:
    """Return a Job with the note that the user requested its stop."""
    annotations = (job["metadata"].get("annotations") or {}) | {_STOPPED_BY_USER: "true"}
    return {**job, "metadata": {**job["metadata"], "annotations": annotations}}


def is_noted_as_stopped(job: Manifest) -> bool:
    """Whether the user requested the stop of a Job."""
    return _STOPPED_BY_USER in (job["metadata"].get("annotations") or {})


def has_started(pod: Manifest) -> bool:
    """Whether the container of a pod ran at any time."""
    return not _container_state(pod).keys().isdisjoint(("running", "terminated"))


def suspended_status() -> JsonObject:
    """Return the status of a Job that waits to be admitted."""
    return {"active": 0, "conditions": [_condition("Suspended", "JobSuspended", "Job suspended")]}


def is_finished(job: Manifest) -> bool:
    """Whether a Job has ended."""
    return not true_conditions(job).keys().isdisjoint(("Complete", "Failed"))


def _condition(kind: str, reason: str, message: str) -> dict[str, str]:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": micro_time(),
    }


def _container_state(pod: Manifest) -> Manifest:
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    state: Manifest = statuses[0].get("state") or {}
    return state


def _with_container(pod: Manifest, status: Manifest, state: Manifest) -> JsonObject:
    name = pod["spec"]["containers"][0].get("name", "")
    container = {"name": name, "state": state, "restartCount": 0}
    return {**pod, "status": {**status, "containerStatuses": [container]}}
