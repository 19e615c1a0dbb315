"""limits.gpuHours: what is reserved, what ends cleanly, what ends everything."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.plan.ledger.gpu_hours import NOTE_SECONDS
from dapt_operator.testing.objects import Ends, Stays
from support.builders import checkpoint, healthy, pretrain_facts
from support.worlds import World

HOUR = {"limits": {"gpuHours": 1.0}}


def deadline(world: World) -> int | None:
    """Active deadline of the newest Job."""
    return world.cluster.objects(world.key, "Job")[-1]["spec"].get("activeDeadlineSeconds")


def test_pretraining_gets_what_is_left_after_the_later_stages() -> None:
    world = World(HOUR)
    world.live_until("pretrain")
    config = world.config("pretrain")
    assert isinstance(config, PretrainConfig)
    # baseline took 30 accelerator-seconds; three such measures, twice for the fine-tuning, are kept
    assert config.max_train_seconds == (3600 - 30 - 6 * 30) / 2
    assert deadline(world) == (3600 - 30) // 2


def test_evaluations_of_every_checkpoint_and_blends_are_kept_for_too() -> None:
    spec = {
        "evaluation": {"when": "everyCheckpoint"},
        "selection": {"interpolate": [0.6, 0.8, 1.0], "averageLast": 3},
    }
    world = World(HOUR | spec)
    world.live_until("pretrain")
    config = world.config("pretrain")
    assert isinstance(config, PretrainConfig)
    # seven blends; four checkpoints and seven blends evaluated, one of them counted before
    assert config.max_train_seconds == (3600 - 30 - (6 + 7 + 4 + 7 - 1) * 30) / 2


def test_a_share_that_is_used_up_starts_no_other_attempt() -> None:
    world = World(HOUR | {"gates": {"onBreach": "Rollback"}})

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return Ends(
                facts=pretrain_facts(
                    [checkpoint(10, 2.9, 0.5)], "BudgetReached", message="its share was used up"
                )
            )
        return healthy(stage)

    world.live(script)
    assert world.stages.count("pretrain") == 1
    assert world.condition("Stalled")[1] == "GatesBreached"


def test_stages_without_accelerators_have_no_deadline() -> None:
    world = World(HOUR)
    world.live_until("prepare")
    assert deadline(world) is None
    world.live_until("baseline")
    assert deadline(world) == 3600


def test_without_a_limit_there_is_none() -> None:
    world = World()
    world.live_until("pretrain")
    config = world.config("pretrain")
    assert isinstance(config, PretrainConfig)
    assert config.max_train_seconds is None
    assert deadline(world) is None


def test_the_profiles_limit_counts_when_the_spec_has_none() -> None:
    world = World(offered={"limits": {"gpuHours": 2.0}})
    world.live_until("baseline")
    assert deadline(world) == 7200


def test_pretraining_that_reaches_its_budget_share_continues_to_publication() -> None:
    world = World(HOUR)

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return Ends(
                facts=pretrain_facts([checkpoint(10)], "BudgetReached", message="its share was used up")
            )
        return healthy(stage)

    world.live(script)
    assert world.status["phase"] == "Published"
    assert world.status["attempts"][0]["endedBy"] == "BudgetReached"


def test_using_up_the_limit_ends_with_the_best_candidate_kept() -> None:
    world = World(HOUR)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, healthy, seconds=2000)
    world.live()
    assert world.stages[-1] == "pretrain"
    message = "limits.gpuHours of 1 is used up before evaluate; the best candidate a1-s40 is kept"
    assert world.condition("Finished") == ("True", "BudgetExhausted", message)
    assert world.condition("Ready")[0] == "False"
    assert world.status["phase"] == "BudgetExhausted"
    assert world.status["selected"] == {
        "id": "a1-s40",
        "reason": "largest gain by perplexity when limits.gpuHours was used up; its tasks were not measured",
        "digest": "000000000028",
    }
    world.edit(limits={"gpuHours": 100})
    world.settle()
    assert world.stages[-1] == "pretrain"
    assert world.status["observedGeneration"] == 2
    assert world.condition("Finished") == ("True", "BudgetExhausted", message)


def test_a_deadline_made_of_the_limit_ends_it_too() -> None:
    world = World(HOUR)
    world.live_until("pretrain")

    def script(stage: StageFile) -> Ends:
        return Ends(1, message="stopped at the deadline", cause=Cause.DEADLINE)

    world.cluster.run_pods(world.key, script, seconds=1700)
    world.live()
    assert world.condition("Finished")[1:] == (
        "BudgetExhausted",
        "limits.gpuHours of 1 is used up before pretrain",
    )


def test_publishing_continues_after_the_gpu_hours_are_used_up() -> None:
    world = World({**HOUR, "finetuning": None})
    world.live_until("verify")
    world.cluster.run_pods(world.key, healthy, seconds=4000)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["gpuHours"] > 1.0


def used_hours(world: World) -> float:
    hours: float = world.status["usage"]["gpuHours"]
    return hours


def kill_by_hand(world: World, seconds: float) -> None:
    """The live run trains for so long, then somebody deletes its Job; the operator sees only that it is gone."""
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    world.cluster.advance(seconds)
    world.cluster.delete_jobs(world.key)
    world.live(lambda stage: Stays(), until=lambda one: one.running is not None)


def test_the_limit_holds_although_jobs_are_deleted_by_hand() -> None:
    world = World(HOUR)
    world.live_until("pretrain")
    before = used_hours(world)
    for number in range(1, 5):
        kill_by_hand(world, 400)
        assert used_hours(world) == pytest.approx(before + number * 800 / 3600, rel=0.01)
    assert deadline(world) == int((1.0 - used_hours(world)) * 3600 / 2)
    stop_at_the_deadline(world)
    assert world.condition("Finished")[1] == "BudgetExhausted"
    assert used_hours(world) == pytest.approx(1.0, rel=0.01)


def stop_at_the_deadline(world: World) -> None:
    left = deadline(world)
    assert left is not None
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    world.cluster.run_pods(world.key, lambda stage: Ends(1, cause=Cause.DEADLINE), seconds=left)
    world.settle()


def test_what_a_job_says_of_its_accelerators_later_costs_nothing_less() -> None:
    world = World(HOUR)
    world.live_until("pretrain")
    before = used_hours(world)
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    world.job["metadata"]["annotations"] = {}
    world.cluster.run_pods(world.key, healthy, seconds=900)
    world.settle()
    assert used_hours(world) == pytest.approx(before + 2 * 900 / 3600, rel=0.01)


def test_a_run_that_vanished_while_nobody_watched_costs_at_most_half_an_hour_more_than_was_seen() -> None:
    world = World()
    world.live_until("pretrain")
    before = used_hours(world)
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    world.cluster.advance(36_000)
    world.cluster.delete_jobs(world.key)
    world.settle()
    assert used_hours(world) == pytest.approx(before + 2 * NOTE_SECONDS / 3600, rel=0.01)


def test_the_time_of_a_long_run_is_written_twice_an_hour_and_with_every_other_write() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    writes = world.cluster.writes
    for _ in range(360):
        world.cluster.advance(10)
        world.reconcile()
    assert world.cluster.writes - writes == 2
    assert record_of(world)["ranSeconds"] == pytest.approx(3600, abs=20)
    world.cluster.advance(100)
    world.edit(gates={"maxGeneralPerplexityIncrease": 0.2})
    world.settle()
    assert record_of(world)["ranSeconds"] == pytest.approx(3700, abs=20)
    assert used_hours(world) == pytest.approx(30 / 3600 + 2 * 3700 / 3600, rel=0.01)


def record_of(world: World) -> dict[str, Any]:
    (record,) = [one for one in world.status["ledger"]["runs"] if one["stage"] == "pretrain"]
    found: dict[str, Any] = record
    return found


def test_a_restored_backup_counts_what_it_had_noted() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    world.cluster.advance(NOTE_SECONDS)
    world.settle()
    backup = world.cluster.status(world.key)
    noted = used_hours(world)
    world.cluster.run_pods(world.key, healthy, seconds=30)
    world.cluster.delete_jobs(world.key)
    world.cluster.stored(world.key).resource["status"] = backup
    world.settle()
    assert used_hours(world) >= noted
