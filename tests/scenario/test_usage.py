"""Tests the goodput of pretraining, and the last lines of a failed rank."""

from __future__ import annotations

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.plan.status.blocks import bounded_lines
from dapt_operator.testing.objects import Ends, Stays
from support.builders import checkpoint, healthy, pretrain_facts
from support.worlds import World


def timed(stage: StageFile) -> Ends | Stays:
    """Pretraining of 40 steps at half a second each."""
    if isinstance(stage.config, PretrainConfig):
        rows = [checkpoint(step, 2.6) for step in stage.config.checkpoint_steps]
        return Ends(facts=pretrain_facts(rows, step_seconds_median=0.5))
    return healthy(stage)


def goodput(world: World) -> float | None:
    return world.status["usage"].get("goodput")


def test_goodput_is_the_share_of_pretrainings_time_that_went_into_steps_that_count() -> None:
    world = World()
    world.live_until("pretrain", timed)
    assert goodput(world) is None
    world.cluster.run_pods(world.key, timed, seconds=25)
    world.settle()
    assert goodput(world) == 0.8  # 40 steps x 0.5 s of 25 s
    world.live(timed)
    assert goodput(world) == 0.8  # other stages do not count


def test_lost_run_lowers_the_goodput() -> None:
    world = World()
    world.live_until("pretrain", timed)
    world.cluster.run_pods(
        world.key, lambda stage: Ends(75, cause=Cause.INFRASTRUCTURE, message="a node is gone"), seconds=15
    )
    world.settle()
    assert goodput(world) is None
    world.cluster.run_pods(world.key, timed, seconds=25)
    world.settle()
    assert goodput(world) == 0.5  # 20 s of 15 + 25 s


def test_goodput_of_a_running_run_follows_its_progress_readings() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    world.cluster.advance(40)
    key = world.runs[-1].run.key
    read = Progress(
        run_key=key, stage="pretrain", fraction=0.5, step=20, tokens=20 * 1024, tokens_per_second=1024.0
    )
    world.cluster.run_pods(world.key, lambda stage: Stays(progress=read))
    world.settle()
    assert goodput(world) == 0.5
    writes = world.cluster.writes
    world.cluster.advance(300)
    assert world.reconcile().is_empty  # nothing new was read
    assert world.cluster.writes == writes


def test_the_last_lines_of_a_failing_rank_are_kept_until_the_stage_succeeds() -> None:
    world = World()
    world.live_until("pretrain")
    name = world.job["metadata"]["name"]
    world.cluster.run_pods(world.key, lambda stage: Ends(1, message="ValueError: what"))
    world.settle()  # the next try starts before the log was read
    assert "lastLogLines" not in world.status["stages"][-1]
    world.cluster.write_log(world.key, f"{name}-0", "step 3", "Traceback", "ValueError: what")
    world.settle()
    assert world.status["stages"][-1]["try"] == 2
    assert world.status["stages"][-1]["lastLogLines"] == ["step 3", "Traceback", "ValueError: what"]
    world.cluster.stored(world.key).logs.clear()
    world.cluster.delete_jobs(world.key, except_prefix=world.job["metadata"]["name"])
    world.settle()
    assert world.status["stages"][-1]["lastLogLines"] == ["step 3", "Traceback", "ValueError: what"]
    world.live()
    assert "lastLogLines" not in next(one for one in world.status["stages"] if one["name"] == "pretrain")


def test_lines_of_a_tenant_are_bounded_and_harmless() -> None:
    assert bounded_lines(tuple(f"line {i}" for i in range(30))) == tuple(f"line {i}" for i in range(10, 30))
    assert bounded_lines(("\x1b[31mred\x00\n",)) == ("red ",)
    assert [len(line) for line in bounded_lines(("x" * 5000,))] == [500]
    long = bounded_lines(tuple("ü" * 400 for _ in range(10)))
    assert sum(len(line.encode()) for line in long) <= 2048
    assert len(long) == 2
    assert bounded_lines(()) == ()
