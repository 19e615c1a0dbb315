"""States do not change when the memory of the cluster keeps only what launchers read of an object."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.cluster.kubernetes.cache.projection import project
from dapt_operator.launchers import all_states
from dapt_operator.stage_run import Children
from support.gang_objects import (
    DISRUPTED,
    NOW,
    RUN,
    SUCCESS,
    deleted,
    ended,
    job,
    job_set,
    pod,
    termination_message,
)
from support.launch_builders import stage_run

GPUS = stage_run(nodes=2, accelerators=8, queue="team")
RUNNING = {"running": {"startedAt": "2026-01-31T12:00:05Z"}}
WAITS: dict[str, Any] = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"},
    ],
    "containerStatuses": [
        {"name": "trainer", "image": "x", "state": {"waiting": {"reason": "ErrImagePull", "message": "no"}}}
    ],
}
FELT = termination_message(75, Cause.INFRASTRUCTURE, "lost a peer", is_effect=True)
LOST = [
    {"type": "Ready", "status": "False"},
    {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "DeletionByTaintManager",
        "lastTransitionTime": "2026-01-31T12:00:10Z",
    },
]
GANGS: dict[str, tuple[dict[str, Any], ...]] = {
    "none": (),
    "waiting": (pod(0, "Pending") | {"status": WAITS}, pod(1, "Pending")),
    "running": (pod(0, "Running", state=RUNNING), pod(1, "Running", state=RUNNING)),
    "succeeded": (ended(0, 0, SUCCESS), ended(1, 0)),
    "one failed": (ended(0, 1), pod(1, "Running")),
    "felt": (ended(0, 75, FELT), deleted(pod(1, "Running"), "2026-01-31T13:00:30Z")),
    "gone": (ended(0, 75, FELT), deleted(pod(1, "Running"), "2026-01-31T12:00:30Z", 0)),
    "on a lost node": (
        deleted(pod(0, "Running", state=RUNNING, conditions=LOST), "2026-01-31T14:00:00Z", 7200),
    ),
    "drained": (ended(0, 137, **DISRUPTED), ended(1, 143)),
    "out of memory": (ended(0, 137, reason="OOMKilled"), ended(1, 75, FELT)),
}
OBJECTS = {
    "Job": job(),
    "JobSet": job_set(),
    "failed Job": job(RUN, {"type": "Failed", "reason": "DeadlineExceeded", "message": "too long"}),
    "failed JobSet": job_set(RUN, {"type": "Failed", "reason": "FailJobSetFailurePolicyAction"}),
    "complete Job": job(RUN, {"type": "Complete", "lastTransitionTime": "2026-01-31T12:02:00Z"}),
    "queued Job": job(GPUS),
    "queued JobSet": job_set(GPUS),
}


@pytest.mark.parametrize("gang", GANGS)
@pytest.mark.parametrize("name", OBJECTS)
def test_projected_objects_give_the_same_run_state(name: str, gang: str) -> None:
    whole, pods = OBJECTS[name], tuple({"kind": "Pod", **item} for item in GANGS[gang])
    digests = {RUN.name: "f" * 64}
    kept = all_states(
        Children(jobs=(project(whole),), pods=tuple(project(item) for item in pods), stage_digests=digests),
        NOW,
    )
    assert kept == all_states(Children(jobs=(whole,), pods=pods, stage_digests=digests), NOW)
    assert len(kept) == 1
