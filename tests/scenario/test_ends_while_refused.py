"""Tests runs that end while their spec or profile is refused: they count, and cost, as they do at any other time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World

OUTSIDE, INVALID, MISSING = "OutsideProfileLimits", "InvalidSpec", "ProfileNotFound"


def lingering(stage: StageFile) -> Ends | Stays:
    outcome = healthy(stage)
    assert isinstance(outcome, Ends)
    return replace(outcome, lingers=True)


def refuse(world: World, reason: str) -> None:
    """Make the operator refuse what it works on."""
    if reason == OUTSIDE:
        world.offer(accelerator={"perNode": 1})
    elif reason == INVALID:
        world.edit(pretraining={"globalBatchSize": "many"})
    else:
        world.edit(profile="other")
    world.settle()
    assert world.condition("Stalled")[:2] == ("True", reason)


def correct(world: World, reason: str) -> None:
    if reason == OUTSIDE:
        world.offer(accelerator={"perNode": 2})
    elif reason == INVALID:
        world.edit(pretraining={"globalBatchSize": 8})
    else:
        world.edit(profile="bench")


def running_refused(stage: str, reason: str, **spec: Any) -> World:
    world = World(spec)
    world.live_until(stage)
    world.cluster.run_pods(world.key, lambda run: Stays())
    world.settle()
    refuse(world, reason)
    assert world.running == stage
    return world


def record(world: World, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in world.status["ledger"]["runs"] if one["stage"] == stage)
    return found


@pytest.mark.parametrize("reason", [OUTSIDE, INVALID, MISSING])
def test_end_of_a_run_is_stored_while_refused_and_the_correction_continues_after_it(reason: str) -> None:
    world = running_refused("prepare", reason)
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    assert (world.status["phase"], world.running) == ("Stalled", None)
    assert record(world, "prepare")["state"] == "Succeeded"
    assert next(one for one in world.status["stages"] if one["name"] == "prepare")["state"] == "Succeeded"
    assert "prepare succeeded" in [event.message for event in world.cluster.events(world.key)]
    correct(world, reason)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("prepare/2") == 0


def test_lingering_pods_are_deleted_while_the_spec_is_refused_once_their_end_is_stored() -> None:
    world = running_refused("prepare", INVALID)
    name = world.job["metadata"]["name"]
    world.cluster.run_pods(world.key, lingering)
    first = world.reconcile()
    assert (first.status is None, first.delete) == (False, ())
    world.cluster.advance(5)
    assert [(one.kind, one.name) for one in world.reconcile().delete] == [("Job", name), ("Pod", f"{name}-0")]
    world.settle()


def test_vanished_job_is_charged_until_it_was_noticed_and_no_longer_while_the_spec_is_refused() -> None:
    world = running_refused("pretrain", INVALID)
    world.cluster.advance(60)
    world.cluster.delete_jobs(world.key)
    world.settle()
    seconds = record(world, "pretrain")["heldSeconds"]
    assert 60.0 <= seconds <= 120.0
    assert record(world, "pretrain")["cause"] == "Disruption"
    hours = world.status["usage"]["gpuHours"]
    world.cluster.advance(1500)
    correct(world, INVALID)
    world.reconcile()
    assert (world.status["usage"]["gpuHours"], world.tries[-1]) == (hours, "pretrain/2")


def test_usage_of_a_run_that_ends_while_refused_is_shown_before_the_correction() -> None:
    world = running_refused("pretrain", OUTSIDE)
    hours = world.status["usage"]["gpuHours"]
    world.cluster.advance(3600)
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    assert world.status["usage"]["gpuHours"] >= hours + 2.0, "two accelerators for an hour"


def test_run_that_vanishes_right_after_its_creation_is_noticed_while_the_spec_is_refused() -> None:
    world = World()
    world.live_until("prepare")
    world.cluster.delete_jobs(world.key)
    refuse(world, INVALID)
    wait = world.plans[-1].requeue_after
    assert wait is not None
    world.cluster.advance(wait)
    world.settle()
    assert record(world, "prepare")["state"] == "Failed"
    assert world.plans[-1].requeue_after is None


@pytest.mark.parametrize("reason", [INVALID, OUTSIDE])
def test_failure_while_refused_is_judged_by_the_retries_of_the_profile(reason: str) -> None:
    world = World({}, {"retries": {"infrastructure": 0}})
    world.live_until("pretrain")
    refuse(world, reason)
    world.end("pretrain", Ends(75, message="lost a peer", cause=Cause.INFRASTRUCTURE))
    world.settle()
    assert record(world, "pretrain").get("retry", False) is False


def test_failure_without_a_profile_leaves_the_judgement_to_the_next_one() -> None:
    """Nobody knows how many retries the profile allows, so that one more run cannot be ruled out."""
    world = World({}, {"retries": {"infrastructure": 0}})
    world.live_until("pretrain")
    refuse(world, MISSING)
    ends = Ends(75, message="lost a peer", cause=Cause.INFRASTRUCTURE)
    world.end("pretrain", ends)
    world.settle()
    assert record(world, "pretrain")["retry"] is True
    assert record(world, "pretrain")["failures"] == {"infrastructure": 1}
    correct(world, MISSING)
    world.settle()
    assert world.tries[-1] == "pretrain/2"
    world.end("pretrain", ends)
    world.settle()
    assert world.condition("Stalled")[1] == "RetriesExhausted"


def test_run_that_the_status_does_not_know_waits_for_the_correction() -> None:
    world = World()
    world.live_until_interrupted("prepare")
    fence = world.status["ledger"]["fence"]
    refuse(world, INVALID)
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    assert [one["stage"] for one in world.status["ledger"]["runs"]] == ["destination"]
    assert world.status["ledger"]["fence"] == fence
    correct(world, INVALID)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("prepare/2") == 0


def test_failed_tuning_frees_its_block_while_the_spec_is_refused() -> None:
    world = running_refused("finetune", INVALID)
    assert "finetuning" in world.status["frozen"]
    world.end("finetune", Ends(65, message="no such column", cause=Cause.BAD_INPUT))
    world.settle()
    assert "finetuning" not in world.status["frozen"]


def test_progress_continues_while_the_spec_is_refused() -> None:
    world = running_refused("pretrain", INVALID)
    for step in (10, 20):
        world.cluster.run_pods(
            world.key,
            lambda stage, step=step: Stays(  # type: ignore[misc]
                Progress(
                    run_key=stage.run.key,
                    stage="pretrain",
                    fraction=step / 40,
                    step=step,
                    total_steps=40,
                )
            ),
        )
        world.cluster.advance(30)
        world.settle()
        assert world.status["progress"]["step"] == step
    assert world.condition("Stalled")[:2] == ("True", INVALID)
