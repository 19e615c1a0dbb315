"""Tests Jobs that are gone before the messages of their pods were read."""

from __future__ import annotations

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "publish"])
def test_resuming_before_the_end_of_the_pods_was_read_costs_nothing(stage: str) -> None:
    world = World()
    world.live_until(stage)
    world.edit(suspend=True)
    world.reconcile()
    world.cluster.delete_jobs(world.key)  # the Job went with its pods between two reconciles
    world.edit(suspend=False)
    began = world.cluster.now
    world.settle()
    assert world.running == stage
    assert world.cluster.now == began, "a run that was asked to stop is not waited for when it is gone"
    assert world.status["stages"][-1]["try"] == 2
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_vanished_job_of_a_later_run_is_noticed_while_the_first_job_is_listed() -> None:
    fallen: list[str] = []

    def falls_once(stage: StageFile) -> Ends | Stays:
        if stage.kind == "prepare" and not fallen:
            fallen.append(stage.kind)
            return Ends(75, message="the disk is away", cause=Cause.INFRASTRUCTURE)
        return healthy(stage)

    world = World()
    world.live(falls_once, until=lambda one: one.tries[-1:] == ["prepare/2"])
    first = world.runs[1].run.key[:8]
    world.cluster.delete_jobs(world.key, except_prefix=f"clinical-prepare-{first}")
    world.cluster.advance(11)
    world.settle()
    assert world.tries[1:] == ["prepare/1", "prepare/2", "prepare/3"]
    world.live()
    assert world.status["phase"] == "Published"
