"""What is to be looked at beyond what watches tell, judged from the children of one adaptation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from dapt_operator.api.names import LABEL_FENCE, LABEL_RUN
from dapt_operator.cluster.kubernetes.polls.kueue_workloads import QUEUE_LABEL
from dapt_operator.launchers.observe.pod_states import parse_time
from dapt_operator.stage_run import Manifest

MOST_LOGS = 4
"""Pods of a failed gang whose logs are read: those that failed first."""
RECENT = timedelta(seconds=60)
_STOPPED = (0, 143)
_OVER = ("Complete", "Completed", "Failed")


def live(jobs: Sequence[Manifest], pods: Sequence[Manifest]) -> list[Manifest]:
    """Jobs and JobSets that are not over and have pods that are not."""
    busy = {run_of(pod) for pod in pods if not _has_ended(pod)}
    return [job for job in jobs if not _is_over(job) and run_of(job) in busy]


def queued(jobs: Sequence[Manifest]) -> list[Manifest]:
    """Jobs and JobSets that wait in a queue."""
    return [
        job
        for job in jobs
        if not _is_over(job) and job["spec"].get("suspend") and QUEUE_LABEL in _labels(job)
    ]


def podless(jobs: Sequence[Manifest], pods: Sequence[Manifest]) -> list[Manifest]:
    """Jobs and JobSets that ought to have a pod and have none."""
    with_pods = {run_of(pod) for pod in pods}
    return [
        job for job in jobs if not (job["spec"].get("suspend") or _is_over(job) or run_of(job) in with_pods)
    ]


def failed(pods: Sequence[Manifest]) -> list[Manifest]:
    """Pods that ended without success."""
    return [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Failed"]


def worth_reading(jobs: Sequence[Manifest], pods: Sequence[Manifest]) -> set[str]:
    """Names of the failed pods whose logs are read: of the newest run, for the causes of older ones are written down;
    first those that failed first."""
    if not jobs:
        return set()
    newest = run_of(max(jobs, key=_fence))
    ends = {
        str(pod["metadata"]["name"]): end
        for pod in pods
        if run_of(pod) == newest and (end := _end(pod)) and end.get("exitCode") not in _STOPPED
    }
    first = sorted(ends, key=lambda name: str(ends[name].get("finishedAt") or "9"))
    return set(first[:MOST_LOGS])


def untold(jobs: Sequence[Manifest], pods: Sequence[Manifest], now: datetime) -> list[Manifest]:
    """Jobs and JobSets that are said to be over while some of their pods are not, or are missing.

    Jobs and pods are watched separately, and a busy watch of pods may be seconds behind that of Jobs. A run that was
    judged then would have lost its message: a success would be repeated, and a failure would have no cause.
    """
    found = []
    for job in jobs:
        over = _ending(job)
        if over is None:
            continue
        own = [pod for pod in pods if run_of(pod) == run_of(job)]
        ended = sum(_has_ended(pod) for pod in own)
        since = parse_time(over.get("lastTransitionTime"))
        recent = since is not None and now - since < RECENT
        if ended < len(own) or (recent and ended < _completions(job)):
            found.append(job)
    return found


def run_of(item: Manifest) -> str:
    """The label that a run's objects share."""
    return _labels(item).get(LABEL_RUN, "")


def _labels(item: Manifest) -> Mapping[str, str]:
    labels: Mapping[str, str] = item["metadata"].get("labels") or {}
    return labels


def _has_ended(pod: Manifest) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _ending(job: Manifest) -> Mapping[str, Any] | None:
    conditions = (job.get("status") or {}).get("conditions") or []
    return next(
        (item for item in conditions if item.get("status") == "True" and item.get("type") in _OVER), None
    )


def _is_over(job: Manifest) -> bool:
    return bool(job["metadata"].get("deletionTimestamp")) or _ending(job) is not None


def _completions(job: Manifest) -> int:
    replicated = job["spec"].get("replicatedJobs")
    specs = [item["template"]["spec"] for item in replicated] if replicated else [job["spec"]]
    return sum(int(spec.get("completions") or 1) for spec in specs)


def _fence(job: Manifest) -> int:
    fence = _labels(job).get(LABEL_FENCE, "")
    return int(fence) if fence.isdigit() else 0


def _end(pod: Manifest) -> Mapping[str, Any]:
    """How its container ended; empty for a pod that never ran."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((end for item in statuses if (end := (item.get("state") or {}).get("terminated"))), {})
