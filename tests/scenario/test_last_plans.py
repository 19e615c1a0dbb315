"""Tests that an adaptation which only waits is not decided again, and that nothing that changes goes unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_operator.plan.requeue import QUIET_SECONDS, STEADY_SECONDS
from dapt_operator.testing.objects import Ends, Stays
from support.builders import profile
from support.worlds import World


def waiting(stage: str = "pretrain", **spec: Any) -> World:
    """A world whose pods have run for a while, and that was decided about since."""
    world = World(spec)
    world.live_until(stage)
    world.cluster.run_pods(world.key, lambda _: Stays())
    world.settle()
    world.cluster.advance(QUIET_SECONDS)
    return world


def is_decided_again(world: World) -> bool:
    """Whether the next reconcile decides; a remembered plan says nothing of how long it holds."""
    plan = world.reconcile()
    return not plan.is_empty or plan.steady_seconds > 0


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "verify"])
def test_a_run_that_only_runs_is_not_decided_about_again(stage: str) -> None:
    world = waiting(stage)
    for _ in range(3):
        assert not is_decided_again(world)
        assert world.plans[-1].requeue_after == QUIET_SECONDS
        world.cluster.advance(QUIET_SECONDS)


def reading_of(stage: StageFile) -> Progress:
    return Progress(run_key=stage.run.key, stage=stage.kind, step=3, total_steps=40, fraction=0.075)


def suspended(world: World) -> None:
    world.edit(suspend=True)


def read(world: World) -> None:
    world.cluster.run_pods(world.key, lambda stage: Stays(progress=reading_of(stage)))


def offered_anew(world: World) -> None:
    world.cluster.add_profile(profile(storage={"className": "fast"}))


def broken(world: World) -> None:
    world.cluster.break_pod(world.key, 0, Ends(1))


def some_time_later(world: World) -> None:
    world.cluster.advance(STEADY_SECONDS)


@pytest.mark.parametrize("change", [suspended, read, offered_anew, broken, some_time_later])
def test_whatever_changes_is_decided_about(change: Callable[[World], None]) -> None:
    world = waiting()
    change(world)
    assert is_decided_again(world)


def test_a_run_near_the_limit_of_accelerator_hours_is_decided_about_each_time() -> None:
    """The limit is reached by time alone."""
    world = waiting(limits={"gpuHours": 0.6})
    assert is_decided_again(world) or world.plans[-1].requeue_after == QUIET_SECONDS
    for _ in range(60):
        if world.running is None:
            break
        world.reconcile()
        world.cluster.advance(QUIET_SECONDS)
    assert world.running is None
