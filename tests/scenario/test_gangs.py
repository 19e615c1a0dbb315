"""Tests a gang with a failed pod: its peers are deleted, the cause is kept, and the next run starts at once."""

from __future__ import annotations

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.plan.decide import Plan
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World

GANG = {"resources": {"nodes": 2}, "pretraining": {"globalBatchSize": 16}}
RETAIN = {"cleanup": {"finishedRuns": "Retain"}}
LOST = Ends(75, message="rank 3 lost its peer", cause=Cause.INFRASTRUCTURE)


def gang(graceful: bool = True, launcher: str = "IndexedJob") -> World:
    """Two nodes train."""
    world = World(GANG, {"launcher": launcher}, graceful=graceful)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    return world


@pytest.mark.parametrize("launcher", ["IndexedJob", "JobSet"])
def test_failed_pod_kills_its_peers_and_the_next_run_starts_at_once(launcher: str) -> None:
    world = gang(launcher=launcher)
    name = world.job["metadata"]["name"]
    assert world.job["kind"] == ("JobSet" if launcher == "JobSet" else "Job")
    world.cluster.break_pod(world.key, 1, LOST)
    first = world.reconcile()
    assert [(one.kind, one.name, one.grace_seconds) for one in first.delete] == [("Pod", f"{name}-0", 0)]
    assert first.requeue_after == 0.2
    second = world.reconcile()
    assert [manifest["kind"] for manifest in second.apply][-1] == world.job["kind"]
    assert world.tries[-1] == "pretrain/2"
    record = next(one for one in world.status["ledger"]["runs"] if one["stage"] == "pretrain")
    assert record["failures"] == {"infrastructure": 1}
    assert [event.message for event in world.cluster.events(world.key)][-1] == "pretrain was started (run 2)"
    world.live()
    assert world.status["phase"] == "Published"


def test_nothing_is_waited_for_between_the_first_failed_pod_and_the_next_gang() -> None:
    """Time stands still in these two reconciles: no backoff and no look after seconds is in the way."""
    world = gang()
    moment = world.cluster.now
    world.cluster.break_pod(world.key, 0, LOST)
    world.settle()
    assert world.cluster.now == moment
    assert world.tries[-1] == "pretrain/2"


def kinds(plan: Plan) -> list[str]:
    """What a plan makes sure of and creates, in its order."""
    return [manifest["kind"] for manifest in (*plan.must_exist, *plan.apply)]


def test_run_after_a_failure_applies_the_shared_service_again() -> None:
    world = gang()
    assert kinds(world.plans[0]) == ["Service", "ConfigMap", "Job"]
    world.cluster.break_pod(world.key, 0, LOST)
    world.reconcile()
    assert kinds(world.reconcile()) == ["Service", "ConfigMap", "Job"]


def test_more_nodes_than_before_get_their_service() -> None:
    world = World()
    world.live_until("baseline")
    world.edit(resources={"nodes": 2}, pretraining={"globalBatchSize": 16})
    world.live_until("pretrain")
    assert kinds(world.plans[0]) == ["ConfigMap", "Job"]
    starts = [kinds(plan) for plan in world.plans if plan.apply]
    assert starts[-1] == ["Service", "ConfigMap", "Job"]


def test_an_effect_alone_is_waited_out_within_seconds() -> None:
    world = gang()
    world.cluster.break_pod(world.key, 0, Ends(143, message="evicted", disrupted=True))
    plan = world.reconcile()
    assert plan.delete == ()
    assert plan.requeue_after == 1.0


def test_gang_that_fails_while_suspending_reports_its_cause_first() -> None:
    world = gang()
    world.cluster.break_pod(world.key, 1, Ends(70, message="CUDA out of memory", cause=Cause.OUT_OF_MEMORY))
    world.edit(suspend=True)
    first = world.reconcile()
    assert [one.kind for one in first.delete] == ["Pod"]
    world.settle()
    stage = world.status["stages"][-1]
    assert (stage["state"], stage["reason"], stage["message"]) == (
        "Suspended", "OutOfMemory", "CUDA out of memory",
    )  # fmt: skip
    assert world.status["phase"] == "Suspended"


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "publish"])
def test_suspended_run_saves_and_its_termination_message_is_kept(stage: str) -> None:
    world = World(graceful=True)
    world.live_until(stage)
    world.cluster.run_pods(world.key, lambda run: Stays())
    world.settle()
    world.edit(suspend=True)
    first = world.reconcile()
    assert [one.kind for one in first.delete] == ["ConfigMap", "Job"]
    assert world.job["metadata"]["deletionTimestamp"]
    assert world.reconcile().delete == ()  # it is not deleted again
    assert world.condition("Reconciling") == (
        "True", "Stopping", "stop requested: running processes save and stop",
    )  # fmt: skip
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    assert world.status["stages"][-1]["message"] == "stop requested"
    assert world.status["stages"][-1]["exitCode"] == 143
    world.cluster.run_pods(world.key, healthy)  # the Job goes
    assert world.running is None
    world.cluster.advance(60)
    world.settle()
    world.edit(suspend=False)
    world.live()
    assert world.tries.count(f"{stage}/2") == 1
    assert world.status["usage"]["restarts"] == 0


def test_job_being_deleted_from_outside_is_left_until_it_is_gone() -> None:
    world = gang()
    stored = world.cluster.stored(world.key)
    world.cluster.delete_gang(stored, world.job, gracefully=True)
    world.cluster.advance(60)
    plan = world.reconcile()
    assert (plan.apply, plan.delete) == ((), ())
    assert world.tries[-1] == "pretrain/1"
    world.live()
    assert world.tries.count("pretrain/2") == 1
    assert world.status["phase"] == "Published"


def test_a_run_that_finishes_while_it_is_being_deleted_is_not_run_again() -> None:
    world = gang()
    world.edit(suspend=True)
    world.reconcile()
    world.cluster.on_stop = lambda stage: healthy(stage)
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    assert world.status["stages"][-1]["state"] == "Succeeded"
    world.cluster.on_stop = lambda stage: Ends(143)
    world.edit(suspend=False)
    world.live()
    assert world.tries.count("pretrain/2") == 0


def test_the_profile_may_change_its_launcher_between_two_runs() -> None:
    world = World(GANG | RETAIN, {"launcher": "JobSet"})
    world.live_until("baseline")
    assert world.job["kind"] == "JobSet"
    world.offer(launcher="IndexedJob")
    world.live_until("pretrain")
    assert world.job["kind"] == "Job"
    assert len(world.cluster.objects(world.key, "Service")) == 1
    world.live()
    assert world.status["phase"] == "Published"
    assert len(world.cluster.objects(world.key, "JobSet")) == 3


def test_jobset_adaptation_with_a_lost_rank_is_published() -> None:
    def troubled(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain" and stage.run.try_number == 1:
            return LOST
        return healthy(stage)

    world = World(GANG | RETAIN, {"launcher": "JobSet"}, graceful=True)
    world.live(troubled)
    assert world.status["phase"] == "Published"
    assert world.cluster.objects(world.key, "Job") == []
    assert world.cluster.objects(world.key, "Service") == []
    assert len(world.cluster.objects(world.key, "JobSet")) == 9
