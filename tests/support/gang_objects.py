"""Objects of a gang as a cluster would hold them: a Job or JobSet of two nodes, its pods, and what they say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.message import RunEnd, encode_message
from dapt_contract.stages.publish import PublishFacts
from dapt_operator.launchers import all_states, indexed_job, jobset
from dapt_operator.stage_run import Children, RunState, StageRun, plain
from support.launch_builders import owner, profile, stage_run

FACTS = PublishFacts(destination="s3://models/x", digest="d", files=3, size_bytes=10)
RUN = stage_run(nodes=2)
NOW = datetime(2026, 1, 31, 13, 0, tzinfo=UTC)
SUCCESS = encode_message(RUN.identity.key, "publish", facts=FACTS)
DISRUPTED: dict[str, Any] = {
    "conditions": [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "drained",
        }
    ]
}


def job(run: StageRun = RUN, *conditions: dict[str, str], **spec: Any) -> dict[str, Any]:
    """The run's Job, with conditions that hold."""
    return _created(plain(indexed_job.render(run, profile(), owner())[-1]), conditions, spec)


def job_set(run: StageRun = RUN, *conditions: dict[str, str], **spec: Any) -> dict[str, Any]:
    """The run's JobSet, with conditions that hold."""
    return _created(plain(jobset.render(run, profile(), owner())[-1]), conditions, spec)


def _created(
    rendered: dict[str, Any], conditions: tuple[dict[str, str], ...], spec: dict[str, Any]
) -> dict[str, Any]:
    rendered["metadata"]["creationTimestamp"] = "2026-01-31T12:00:00Z"
    rendered["metadata"]["uid"] = f"{rendered['kind']} {rendered['metadata']['name']}"
    rendered["spec"] |= spec
    rendered["status"] = {"conditions": [{"status": "True"} | item for item in conditions]}
    return rendered


def pod(
    index: int, phase: str, run: StageRun = RUN, state: dict[str, Any] | None = None, **status: Any
) -> dict[str, Any]:
    """A pod of a run: of its Job, or of the Job of its JobSet, which has the same uid here."""
    metadata = job(run)["spec"]["template"]["metadata"]
    owner_reference = {"apiVersion": "batch/v1", "kind": "Job", "uid": job_uid(run), "controller": True}
    return {
        "metadata": metadata
        | {
            "name": f"{run.name}-{index}",
            "namespace": "health",
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [owner_reference],
        },
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state or {}}]} | status,
    }


def job_uid(run: StageRun = RUN) -> str:
    """The uid of the Job whose pods are a run's."""
    return f"Job {run.name}"


def ended(
    index: int,
    code: int,
    text: str = "",
    *,
    run: StageRun = RUN,
    reason: str = "Error",
    at: int = 30,
    **status: Any,
) -> dict[str, Any]:
    """A pod that ended `at` seconds past 12:01, with a termination message."""
    terminated = {
        "exitCode": code,
        "reason": reason,
        "message": text,
        "startedAt": "2026-01-31T12:00:05Z",
        "finishedAt": f"2026-01-31T12:01:{at:02d}Z",
    }
    return pod(index, "Succeeded" if code == 0 else "Failed", run, {"terminated": terminated}, **status)


def deleted(found: dict[str, Any], until: str, grace_seconds: int = 30) -> dict[str, Any]:
    """The same pod after somebody deleted it; `until`: the end of its grace period."""
    metadata = {"deletionTimestamp": until, "deletionGracePeriodSeconds": grace_seconds}
    return found | {"metadata": found["metadata"] | metadata}


def termination_message(
    code: int,
    cause: Cause | None,
    sentence: str,
    *,
    is_effect: bool = False,
    facts: PublishFacts | None = None,
) -> str:
    """Return a termination message of `RUN`."""
    end = RunEnd(code, cause, sentence, is_effect)
    return encode_message(RUN.identity.key, "publish", end, facts=facts)


def state_of(
    *pods: dict[str, Any], of: dict[str, Any] | None = None, now: datetime = NOW, **more: Any
) -> RunState:
    """The one run's state; `more`: further fields of Children."""
    child_jobs = {RUN.name: job_uid()}
    (state,) = all_states(Children(jobs=(of or job(),), pods=pods, child_jobs=child_jobs, **more), now)
    return state
