"""The Job and the ConfigMap of a run go once the status has its end; the last run that failed stays."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.cluster.port import ObjectReference
from dapt_operator.launchers import LAUNCHERS, all_states
from dapt_operator.plan.decide import Plan, decide
from dapt_operator.plan.observed import observe
from dapt_operator.testing.invariants import ImpossibleWorldError
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, healthy, pretrain_facts
from support.worlds import World, failing, once

RETAIN: dict[str, Any] = {"cleanup": {"finishedRuns": "Retain"}}
LOST_RANK = Ends(75, message="a rank is lost", cause=Cause.INFRASTRUCTURE)
LIMIT = "past the limit"


def existing(world: World, kind: str = "Job") -> list[str]:
    """Runs whose object of a kind exists, as STAGE/TRY."""
    labels = [item["metadata"]["labels"] for item in world.cluster.objects(world.key, kind)]
    return [f"{one['dapt.dev/stage']}/{one['dapt.dev/try']}" for one in labels]


def live(world: World, script: Script) -> list[list[str]]:
    """Live to the end; return which runs existed whenever nothing was left to do, each state once."""
    moments: list[list[str]] = []

    def look(world: World) -> bool:
        assert existing(world, "ConfigMap") == existing(world)
        if existing(world) not in moments[-1:]:
            moments.append(existing(world))
        return False

    world.live(script, look)
    assert world.status["phase"] == "Published"
    return moments


def next_plan(world: World, *, keeps_ended_runs: bool = False) -> Plan:
    """What a reconcile would do now."""
    raw = world.cluster.observe(world.key)
    assert raw.resource is not None
    states = all_states(raw.children, raw.now)
    observed = observe(raw.resource, raw.profile, states, raw.now, keeps_ended_runs=keeps_ended_runs)
    return decide(observed, LAUNCHERS["IndexedJob"])


# --- a life ---


def test_life_of_seven_stages_keeps_the_live_run_and_the_last_failure_alone() -> None:
    world = World()
    moments = live(world, failing("pretrain", once(LOST_RANK)))
    assert moments == [
        ["destination/1"],
        ["prepare/1"],
        ["baseline/1"],
        ["pretrain/1"],
        ["pretrain/1", "pretrain/2"],
        ["evaluate/1"],
        ["finetune/1"],
        ["verify/1"],
        ["publish/1"],
        [],
    ]


def test_each_run_costs_two_deletions_and_no_write_of_the_status() -> None:
    kept, deleted = World(RETAIN), World()
    kept.live()
    deleted.live()
    assert deleted.cluster.writes == kept.cluster.writes
    deletions = [verb for verb in deleted.cluster.verbs if verb.startswith("delete ")]
    assert len(deletions) == len(set(deletions)) == 2 * len(deleted.runs)
    assert [verb for verb in deleted.cluster.verbs if verb not in deletions] == kept.cluster.verbs


def test_life_with_a_rollback_keeps_no_attempt_that_ended_at_the_limit() -> None:
    def forgets(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain" and stage.run.attempt == 1:
            rows = [checkpoint(10, 2.9, 0.05), checkpoint(20, 2.7, 0.7)]
            facts = pretrain_facts(rows, "ForgettingLimit", message=LIMIT)
            return Ends(76, facts=facts, message=LIMIT, cause=Cause.FORGETTING_LIMIT)
        return healthy(stage)

    world = World({"gates": {"onBreach": "Rollback"}, "selection": {"interpolate": [1.0], "averageLast": 1}})
    moments = live(world, forgets)
    assert world.status["attempt"] == 2
    assert all(len(moment) == 1 for moment in moments[:-1])
    assert moments[-1] == []


@pytest.mark.parametrize("launcher", ["IndexedJob", "JobSet"])
def test_suspended_run_leaves_no_object(launcher: str) -> None:
    world = World({}, {"launcher": launcher}, graceful=True)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.edit(suspend=True)
    world.settle()
    for _ in range(2):  # its pods save and end, then it goes
        world.cluster.run_pods(world.key, healthy)
        world.settle()
    kinds = {kind for kind, _ in world.cluster.stored(world.key).objects}
    assert kinds == {"Secret"}
    world.edit(suspend=False)
    world.live()
    assert world.tries.count("pretrain/2") == 1


# --- the last run that failed ---


def test_stalled_adaptation_keeps_the_run_that_failed_and_reads_its_log_later() -> None:
    world = World()
    world.live(failing("prepare", lambda stage: Ends(64, message="no such file", cause=Cause.BAD_INPUT)))
    assert world.status["phase"] == "Stalled"
    assert existing(world) == existing(world, "ConfigMap") == ["prepare/1"]
    (pod,) = world.cluster.objects(world.key, "Pod")
    world.cluster.write_log(world.key, pod["metadata"]["name"], "no such file")
    world.settle()
    assert world.status["stages"][-1]["lastLogLines"] == ["no such file"]


def test_of_several_failures_the_last_one_stays() -> None:
    def fails_twice(stage: StageFile) -> Ends | None:
        return LOST_RANK if stage.run.try_number < 3 else None

    world = World()
    moments = live(world, failing("pretrain", fails_twice))
    assert [moment for moment in moments if any("pretrain" in run for run in moment)] == [
        ["pretrain/1"],
        ["pretrain/1", "pretrain/2"],
        ["pretrain/2"],
        ["pretrain/2", "pretrain/3"],
    ]


# --- deletions by others, and deaths of the operator ---


def test_config_map_goes_when_somebody_has_deleted_the_job() -> None:
    world = World()
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    world.cluster.delete_jobs(world.key)
    world.cluster.advance(11)
    world.settle()
    assert existing(world) == existing(world, "ConfigMap") == ["pretrain/2"]


def test_failed_run_that_somebody_deletes_is_not_run_again() -> None:
    world = World()
    world.live(failing("prepare", lambda stage: Ends(64, message="no such file", cause=Cause.BAD_INPUT)))
    before, tries = world.status, list(world.tries)
    world.cluster.delete_jobs(world.key)
    world.cluster.advance(60)
    assert world.reconcile().is_empty
    assert (world.status, world.tries) == (before, tries)


def test_run_is_not_deleted_before_the_status_has_its_end() -> None:
    world = World()
    world.live_until("prepare")
    name = world.job["metadata"]["name"]
    assert world.cluster.run_pods(world.key, healthy)
    assert next_plan(world).delete == ()
    for kind in ("ConfigMap", "Job"):
        with pytest.raises(ImpossibleWorldError, match="was deleted before its result was written"):
            world.cluster.delete(world.key, ObjectReference(kind, name))
    world.reconcile()
    assert [(one.kind, one.name) for one in next_plan(world).delete] == [("ConfigMap", name), ("Job", name)]


@pytest.mark.parametrize("number", range(3))
def test_operator_that_dies_between_the_deletions_leaves_nothing(number: int) -> None:
    world = World()
    world.live_until("prepare")
    assert world.cluster.run_pods(world.key, healthy)
    world.reconcile()
    world.cluster.crash_at = len(world.cluster.verbs) + number
    world.crashing_reconcile()
    world.cluster.crash_at = None
    world.settle()
    assert existing(world) == existing(world, "ConfigMap") == ["baseline/1"]


# --- the setting ---


def test_retained_runs_go_when_the_setting_is_removed() -> None:
    world = World(RETAIN)
    world.live_until("finetune")
    ended = ["destination/1", "prepare/1", "baseline/1", "pretrain/1", "evaluate/1"]
    assert existing(world) == existing(world, "ConfigMap") == [*ended, "finetune/1"]
    world.edit(cleanup={"finishedRuns": "Delete"})
    world.settle()
    assert existing(world) == existing(world, "ConfigMap") == ["finetune/1"]


def test_retained_runs_of_a_finished_adaptation_go_when_the_setting_is_removed() -> None:
    world = World(RETAIN)
    world.live()
    assert len(existing(world)) == 8
    world.edit(cleanup={"finishedRuns": "Delete"})
    world.settle()
    assert existing(world) == existing(world, "ConfigMap") == []


def test_objects_of_a_local_run_stay_whatever_the_setting_is() -> None:
    world = World()
    world.live_until("prepare")
    assert world.cluster.run_pods(world.key, healthy)
    world.reconcile()
    assert next_plan(world).delete != ()
    assert next_plan(world, keeps_ended_runs=True).delete == ()


def test_invalid_spec_deletes_no_run() -> None:
    world = World()
    world.live_until("prepare")
    assert world.cluster.run_pods(world.key, healthy)
    world.reconcile()
    world.edit(pretraining={"globalBatchSize": -1})
    assert next_plan(world).delete == ()
