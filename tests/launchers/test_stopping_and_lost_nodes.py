"""Tests what pods write to their nodes, how long they may take to stop, and how soon a lost node is left."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.launchers.observe.containers import has_ended
from dapt_operator.launchers.observe.pod_states import LOST_NODE_SECONDS
from dapt_operator.launchers.render.environment import grace_seconds
from dapt_operator.plan.decide import QUIET_SECONDS, RUNNING_SECONDS
from dapt_operator.stage_run import RunPhase, RunState, StageRun, plain
from dapt_operator.testing.objects import Stays
from support.gang_objects import deleted, job, pod, state_of
from support.launch_builders import owner, profile, stage_run
from support.worlds import World

NODE_MONITOR_GRACE_SECONDS = 50
"""Until Kubernetes notices that a node does not answer, by default since 1.32; before it was 40."""
NODE_MONITOR_PERIOD_SECONDS = 5
"""Until the node controller has set its taint."""
NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
"""When the taint evicts the pod."""
RUNNING = {"running": {"startedAt": "2026-01-31T11:00:00Z"}}


def pod_spec(run: StageRun, offered: AdaptationProfileSpec | None = None) -> dict[str, Any]:
    (*_, job) = LAUNCHERS["IndexedJob"].render(run, offered or unset(), owner())
    spec: dict[str, Any] = plain(job["spec"]["template"]["spec"])
    return spec


def unset(**changes: Any) -> AdaptationProfileSpec:
    """A profile that leaves the grace period to the estimate."""
    return profile(terminationGracePeriodSeconds=None, **changes)


def tolerated(spec: dict[str, Any]) -> dict[str, int]:
    return {item["key"].partition("/")[2]: item["tolerationSeconds"] for item in spec["tolerations"]}


@pytest.mark.parametrize(
    ("stop_seconds", "grace"),
    [(None, 30), (0.0, 60), (2.0, 70), (100.0, 210), (448.0, 740), (10_000.0, 1800), (1e18, 1800)],
)
def test_the_grace_period_follows_the_estimated_time_of_a_save(
    stop_seconds: float | None, grace: int
) -> None:
    run = stage_run(stop_seconds=stop_seconds)
    spec = pod_spec(run)
    assert spec["terminationGracePeriodSeconds"] == grace
    variables = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
    assert variables["DAPT_GRACE_SECONDS"] == str(grace)
    assert grace_seconds(run, profile(terminationGracePeriodSeconds=7)) == 7


def test_training_goes_on_within_90_seconds_of_the_loss_of_a_node() -> None:
    spec = pod_spec(stage_run(nodes=2, stop_seconds=600.0))
    noticed = NODE_MONITOR_GRACE_SECONDS + NODE_MONITOR_PERIOD_SECONDS
    # The operator looks again after RUNNING_SECONDS at the latest; the grace period is no part of the sum.
    next_run = noticed + tolerated(spec)["unreachable"] + LOST_NODE_SECONDS + RUNNING_SECONDS
    assert next_run <= 80
    assert spec["terminationGracePeriodSeconds"] > 90


def test_the_profile_says_how_long_a_node_may_be_lost() -> None:
    assert tolerated(pod_spec(stage_run())) == {"unreachable": 5, "not-ready": 30}
    patient = unset(nodeLoss={"unreachableSeconds": 120, "notReadySeconds": 600})
    assert tolerated(pod_spec(stage_run(), patient)) == {"unreachable": 120, "not-ready": 600}


def evicted(reason: str, ready: str, seconds: float, *peers: dict[str, Any]) -> RunState:
    """The run of a pod that was deleted with ten minutes' grace, so many seconds later."""
    conditions = [
        {"type": "Ready", "status": ready},
        {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": said(NOW)},
    ]
    lost = pod(0, "Running", state=RUNNING, conditions=conditions)
    lost = deleted(lost, said(NOW + timedelta(minutes=10)), grace_seconds=600)
    return state_of(lost, *peers, now=NOW + timedelta(seconds=seconds))


def said(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_a_run_leaves_a_lost_node_long_before_the_grace_period_is_over() -> None:
    assert evicted("DeletionByTaintManager", "False", LOST_NODE_SECONDS - 1).is_live
    gone = evicted("DeletionByTaintManager", "False", LOST_NODE_SECONDS)
    assert (gone.phase, gone.cause, gone.completed) == (RunPhase.FAILED, Cause.DISRUPTION, NOW)


def test_a_run_with_a_deleted_pod_is_looked_at_again_within_seconds() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda run: Stays())
    world.settle()
    assert world.reconcile().requeue_after == QUIET_SECONDS
    objects = world.cluster.stored(world.key).objects
    (lost,) = [found for (kind, _), found in objects.items() if kind == "Pod" and not has_ended(found)]
    lost["metadata"] |= {"deletionTimestamp": said(world.cluster.now + timedelta(minutes=10))}
    assert world.reconcile().requeue_after == RUNNING_SECONDS


def test_the_peers_of_a_pod_on_a_lost_node_are_killed_at_once() -> None:
    peer = pod(1, "Running", state=RUNNING)
    gang = evicted("DeletionByTaintManager", "False", LOST_NODE_SECONDS, peer)
    assert gang.peers_to_end == (peer["metadata"]["name"],)


@pytest.mark.parametrize(
    ("reason", "ready"),
    [
        ("DeletionByTaintManager", "True"),
        ("EvictionByEvictionAPI", "False"),
        ("PreemptionByScheduler", "True"),
    ],
)
def test_a_node_that_answers_has_its_whole_grace_period_to_save(reason: str, ready: str) -> None:
    assert evicted(reason, ready, 599).is_live
    assert not evicted(reason, ready, 606).is_live


def test_deleted_job_is_gone_once_none_of_its_pods_is_alive() -> None:
    manifest = job()
    manifest["metadata"]["deletionTimestamp"] = "2026-01-31T11:59:30Z"
    assert state_of(of=manifest, now=NOW).is_gone
    assert not state_of(of=manifest, now=NOW - timedelta(seconds=1)).is_gone, "a pod may be reported late"
    assert not state_of(pod(0, "Running", state=RUNNING), of=manifest, now=NOW).is_gone
    assert not state_of(now=NOW).is_gone


@pytest.mark.parametrize(
    ("kind", "processes", "request_", "limit"),
    [("prepare", 1, "1280Mi", "21Gi"), ("pretrain", 8, "3072Mi", "12Gi"), ("baseline", 1, "1280Mi", "5Gi")],
)
def test_ephemeral_storage_is_requested_and_scratch_is_bounded(
    kind: str, processes: int, request_: str, limit: str
) -> None:
    run = stage_run(processes=processes)
    spec = pod_spec(StageRun(identity=run.identity, kind=kind, config=run.config, resources=run.resources))
    assert spec["containers"][0]["resources"]["requests"]["ephemeral-storage"] == request_
    (scratch,) = [volume for volume in spec["volumes"] if volume["name"] == "scratch"]
    assert scratch["emptyDir"] == {"sizeLimit": limit}


def test_a_template_decides_the_ephemeral_storage() -> None:
    resources = {"requests": {"ephemeral-storage": "2Gi"}, "limits": {"ephemeral-storage": "40Gi"}}
    template = {"spec": {"containers": [{"name": "trainer", "resources": resources}]}}
    spec = pod_spec(stage_run(), unset(podTemplate=template))
    assert spec["containers"][0]["resources"]["requests"]["ephemeral-storage"] == "2Gi"
    (scratch,) = [volume for volume in spec["volumes"] if volume["name"] == "scratch"]
    assert scratch["emptyDir"] == {"sizeLimit": "40Gi"}


def test_a_queue_is_not_asked_for_ephemeral_storage() -> None:
    requests = pod_spec(stage_run(queue="team"))["containers"][0]["resources"]["requests"]
    assert "ephemeral-storage" not in requests
