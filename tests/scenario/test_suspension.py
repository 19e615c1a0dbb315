"""Tests suspension, deletion and changes from outside."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dapt_operator.launchers import LAUNCHERS
from dapt_operator.reconcile import reconcile
from dapt_operator.testing.objects import Ends, Stays
from support.builders import adaptation, healthy
from support.worlds import World

STAGES = ["destination", "prepare", "baseline", "pretrain", "evaluate", "finetune", "verify", "publish"]


@pytest.mark.parametrize("stage", STAGES)
def test_suspending_stops_a_running_stage_and_resuming_costs_no_retry(stage: str) -> None:
    world = World()
    world.live_until(stage)
    world.cluster.advance(60)
    world.edit(suspend=True)
    world.reconcile()
    assert world.running is None
    world.settle()
    world.cluster.advance(60)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.condition("Suspended") == ("True", "SuspendedByUser", "spec.suspend is true")
    assert world.condition("Reconciling") == ("False", "SuspendedByUser", "spec.suspend is true")
    assert world.status["stages"][-1]["state"] == "Suspended"
    assert world.reconcile().requeue_after is None
    world.edit(suspend=False)
    world.live()
    assert world.tries.count(f"{stage}/2") == 1
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


@pytest.mark.parametrize("stage", STAGES)
def test_what_ended_while_suspending_is_not_run_again(stage: str) -> None:
    world = World()
    world.live_until(stage)
    world.edit(suspend=True)
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    world.edit(suspend=False)
    world.live()
    assert world.tries.count(f"{stage}/2") == 0
    assert world.status["phase"] == "Published"


def test_a_suspended_adaptation_starts_nothing() -> None:
    world = World({"suspend": True})
    world.settle()
    assert world.runs == []
    assert world.status["phase"] == "Suspended"
    world.edit(suspend=False)
    world.live()
    assert world.status["phase"] == "Published"


def test_a_run_that_the_status_does_not_know_is_written_down_before_it_is_deleted() -> None:
    world = World()
    # After the question for the key, the ConfigMap and the Job, before the status.
    world.cluster.crash_at = len(world.cluster.verbs) + 3
    world.crashing_reconcile()
    world.edit(suspend=True)
    first = world.reconcile()
    assert first.delete == ()
    assert world.reconcile().delete != ()
    world.settle()
    world.cluster.advance(60)
    world.edit(suspend=False)
    world.live()
    assert world.tries[:2] == ["destination/1", "destination/2"]


@pytest.mark.parametrize("stage", STAGES)
def test_deleting_the_resource_ends_everything(stage: str) -> None:
    world = World()
    world.live_until(stage)
    world.cluster.remove(world.key)
    assert reconcile(world.cluster, world.key, LAUNCHERS).is_empty


def test_a_resource_that_is_being_deleted_starts_nothing() -> None:
    world = World()
    world.cluster.stored(world.key).resource["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    assert world.reconcile().is_empty
    assert world.runs == []


def test_recreated_resource_ignores_the_jobs_of_its_predecessor() -> None:
    world = World()
    world.live_until("pretrain")
    leftover = world.cluster.stored(world.key).objects
    world.cluster.remove(world.key)
    world.key = world.cluster.add(adaptation())
    world.cluster.stored(world.key).objects.update(leftover)
    for job in [place for place in leftover if place[0] == "Job"]:
        leftover[job]["status"]["conditions"] = [{"type": "Failed", "status": "True"}]
    world.runs.clear()
    plan = world.reconcile()
    assert [manifest["kind"] for manifest in plan.apply] == ["ConfigMap", "Job"]
    assert plan.apply[-1]["metadata"]["labels"]["dapt.dev/stage"] == "destination"


def test_a_conflict_observes_again() -> None:
    world = World()
    world.cluster.num_conflicts = 1
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("prepare/1") == 1


@pytest.mark.parametrize(
    ("over", "reason", "message"),
    [
        (
            {"model": {"source": "adaptation://other"}},
            "NotSupported",
            "not supported yet: spec.model.source adaptation://other: the result of another adaptation is not looked"
            " up; give the address where it was published",
        ),
        (
            {"resources": {"gpusPerNode": 4}, "credentials": [{"secretName": "hub", "use": "read"}]},
            "OutsideProfileLimits",
            "profile bench: spec.resources.gpusPerNode is 4; a node has 2; Secret hub is not allowed (allowed: dapt-*)",
        ),
        (
            {"profile": "other"},
            "ProfileNotFound",
            "there is no AdaptationProfile other: create it, or name another in spec.profile",
        ),
        (
            {"pretraining": {"globalBatchSize": 9}},
            "InvalidSpec",
            "spec.pretraining.globalBatchSize is 9, which cannot be divided by 8 (1 node x 2 processes"
            " x micro-batch 4): write 8 or 16",
        ),
        (
            {"finetuning": {"globalBatchSize": 5}},
            "InvalidSpec",
            "spec.finetuning.globalBatchSize is 5, which cannot be divided by 2 (1 node x 2 processes): write 4 or 6",
        ),
    ],
)
def test_a_spec_that_cannot_be_is_stalled_before_anything_runs(
    over: dict[str, object], reason: str, message: str
) -> None:
    world = World(over)
    world.settle()
    assert world.condition("Stalled") == ("True", reason, message)
    assert world.condition("Accepted") == ("False", reason, message)
    assert world.status["phase"] == "Stalled"
    assert world.runs == []


def test_corrected_spec_continues_to_publication() -> None:
    world = World({"model": {"source": "adaptation://other"}})
    world.settle()
    world.edit(model={"source": "file:///models/base"})
    world.live()
    assert world.status["phase"] == "Published"


def refused_in_training(**spec: Any) -> World:
    """An adaptation whose profile no longer has the GPUs of its running training."""
    world = World(spec)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda run: Stays())
    world.settle()
    world.offer(accelerator={"perNode": 1})
    world.settle()
    assert world.condition("Stalled")[:2] == ("True", "OutsideProfileLimits")
    assert world.running == "pretrain"
    return world


def test_suspending_stops_what_runs_while_the_spec_is_refused() -> None:
    world = refused_in_training()
    world.edit(suspend=True)
    world.settle()
    assert world.running is None
    assert world.condition("Suspended")[0] == "True"
    world.offer(accelerator={"perNode": 2})
    world.edit(suspend=False)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_peers_of_a_failed_pod_end_while_the_spec_is_refused() -> None:
    world = refused_in_training(resources={"nodes": 2}, pretraining={"globalBatchSize": 16})
    world.cluster.break_pod(world.key, 1, Ends(1, message="a rank failed"))
    plan = world.reconcile()
    assert [(removal.kind, removal.name.rpartition("-")[2]) for removal in plan.delete] == [("Pod", "0")]
    assert plan.requeue_after == 1.0


def test_gpu_hours_are_written_while_the_spec_is_refused() -> None:
    world = refused_in_training()
    for _ in range(12):
        assert world.plans[-1].requeue_after == 60.0
        world.cluster.advance(600)
        world.settle()
    record = world.status["ledger"]["runs"][-1]
    assert record["ranSeconds"] == 7200.0
    assert world.cluster.writes < 20


def test_model_that_no_gpus_can_measure_is_refused_before_baseline() -> None:
    world = World({}, {"accelerator": {"memoryGiB": 2.5}})
    world.live()
    assert world.stages == ["destination", "prepare"]
    assert world.condition("Stalled")[1] == "NotEnoughMemory"
    assert re.match(r"baseline needs \d\.\d GiB a GPU by the estimate", world.condition("Stalled")[2])
    world.offer(accelerator={"memoryGiB": 24})
    world.live()
    assert world.status["phase"] == "Published"


def test_resources_of_a_later_measurement_that_do_not_fit_are_refused_before_baseline() -> None:
    world = World({"stageResources": {"verify": {"nodes": 1, "gpusPerModel": 3}}})
    world.live()
    assert world.stages == ["destination", "prepare"]
    assert world.condition("Stalled")[1:3] == (
        "InvalidSpec",
        "spec.stageResources.verify.gpusPerModel is 3, and copies of that many do not fill 1 node with 2 each: write a"
        " divisor of 2, or whole nodes that divide spec.stageResources.verify.nodes",
    )
    world.edit(stageResources=None)
    world.live()
    assert world.status["phase"] == "Published"


def test_a_fine_tuning_that_does_not_fit_is_refused_before_the_pretraining_is_paid_for() -> None:
    world = World({"finetuning": {"method": {"full": {}}}}, {"accelerator": {"memoryGiB": 3.1}})
    world.live()
    assert world.stages == ["destination", "prepare", "baseline"]
    assert world.condition("Stalled")[1] == "NotEnoughMemory"
    assert re.match(r"finetuning needs \d\.\d GiB a rank by the estimate", world.condition("Stalled")[2])
    world.edit(finetuning={"method": {"full": None, "lora": {}}})
    world.live()
    assert world.status["phase"] == "Published"
