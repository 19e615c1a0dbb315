"""Chooses, among the children of one adaptation, what to poll beyond what watches report. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from dapt_contract.pod.failure import ExitCode
from dapt_operator.api.names import LABEL_FENCE, LABEL_RUN
from dapt_operator.cluster.answers import whole_number
from dapt_operator.launchers.labels import QUEUE_LABEL, template_labels
from dapt_operator.launchers.observe.containers import (
    exit_code_of,
    has_ended,
    parse_time,
    phase_of,
    trainer_end,
)
from dapt_operator.launchers.observe.pod_waiting import is_unexplained
from dapt_operator.launchers.observe.run_states import true_conditions
from dapt_operator.stage_run import Manifest

MAX_LOGS: Final = 4
"""Number of pods of a failed gang whose logs are read."""
RECENT: Final = timedelta(seconds=60)
_EXPECTED_EXIT_CODES: Final = (ExitCode.DONE, ExitCode.STOPPED)
_END_CONDITIONS: Final = ("Complete", "Completed", "Failed")


def live_runs(jobs: Sequence[Manifest], pods: Sequence[Manifest]) -> list[Manifest]:
    """Return the Jobs and JobSets that have not ended and have pods that have not ended."""
    runs_with_live_pods = {run_of(pod) for pod in pods if not has_ended(pod)}
    return [job for job in jobs if not _is_over(job) and run_of(job) in runs_with_live_pods]


def queued_runs(jobs: Sequence[Manifest]) -> list[Manifest]:
    """Return the Jobs and JobSets that wait in a queue."""
    return [
        job
        for job in jobs
        if not _is_over(job) and job["spec"].get("suspend") and QUEUE_LABEL in _labels(job)
    ]


def runs_lacking_pods(jobs: Sequence[Manifest], pods: Sequence[Manifest]) -> list[Manifest]:
    """Return the Jobs and JobSets that have fewer pods than they should."""
    num_pods = Counter(run_of(pod) for pod in pods)
    return [
        job
        for job in jobs
        if not (job["spec"].get("suspend") or _is_over(job)) and num_pods[run_of(job)] < _completions(job)
    ]


def unexplained_pods(jobs: Sequence[Manifest], pods: Sequence[Manifest]) -> list[Manifest]:
    """Return of each live run the first pod whose status does not say why it does not start.

    One for each run is enough: what holds up one pod of a gang holds up the gang.
    """
    first: dict[str, Manifest] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        if is_unexplained(pod):
            first.setdefault(run_of(pod), pod)
    return [first[run_of(job)] for job in jobs if not _is_over(job) and run_of(job) in first]


def failed_pods(pods: Sequence[Manifest]) -> list[Manifest]:
    """Return the pods whose trainer ended without success, or never started."""
    return [pod for pod in pods if phase_of(pod.get("status") or {}) == "Failed"]


def log_targets(jobs: Sequence[Manifest], pods: Sequence[Manifest]) -> set[str]:
    """Return the names of the failed pods whose logs are read: those of the newest run that failed first.

    The causes of older runs are in the ledger already.
    """
    if not jobs:
        return set()
    # By fence and not by creation: fences rise with every run, and times of creation may be equal.
    newest = run_of(max(jobs, key=_fence))
    ends = {
        str(pod["metadata"]["name"]): end
        for pod in pods
        # Of peers that were stopped the logs tell nothing about the cause, and would fill the four places.
        if run_of(pod) == newest
        and (end := trainer_end(pod))
        and exit_code_of(end) not in _EXPECTED_EXIT_CODES
    }
    # A pod without a time comes last: "9" is greater than any year.
    by_end = sorted(ends, key=lambda name: str(ends[name].get("finishedAt") or "9"))
    return set(by_end[:MAX_LOGS])


def runs_ahead_of_pods(jobs: Sequence[Manifest], pods: Sequence[Manifest], now: datetime) -> list[Manifest]:
    """Return the Jobs and JobSets that are reported as ended while some of their pods are not, or are missing.

    Jobs and pods are watched separately, and a busy watch of pods may be seconds behind that of Jobs. A run that is
    judged in between has lost its messages: a success would be repeated, and a failure would have no cause.
    """
    runs = []
    for job in jobs:
        end = _end_condition(job)
        if end is None:
            continue
        own_pods = [pod for pod in pods if run_of(pod) == run_of(job)]
        num_ended = sum(has_ended(pod) for pod in own_pods)
        ended_at = parse_time(end.get("lastTransitionTime"))
        # Pods of an older end may be missing for good, so only a recent end waits for them.
        is_recent = ended_at is not None and now - ended_at < RECENT
        if num_ended < len(own_pods) or (is_recent and num_ended < _completions(job)):
            runs.append(job)
    return runs


def run_of(item: Manifest) -> str:
    """Return the label that all objects of a run share; a Job's is that of its pods' template, which is immutable."""
    return template_labels(item).get(LABEL_RUN) or _labels(item).get(LABEL_RUN, "")


def _labels(item: Manifest) -> Mapping[str, str]:
    labels: Mapping[str, str] = item["metadata"].get("labels") or {}
    return labels


def _end_condition(job: Manifest) -> Manifest | None:
    return next(
        (condition for kind, condition in true_conditions(job).items() if kind in _END_CONDITIONS), None
    )


def _is_over(job: Manifest) -> bool:
    return bool(job["metadata"].get("deletionTimestamp")) or _end_condition(job) is not None


def _completions(job: Manifest) -> int:
    replicated = job["spec"].get("replicatedJobs")
    specs = [item["template"]["spec"] for item in replicated] if replicated else [job["spec"]]
    return sum(int(spec.get("completions") or 1) for spec in specs)


def _fence(job: Manifest) -> int:
    return whole_number(_labels(job).get(LABEL_FENCE, "")) or 0
