"""The operator is killed before or after any of its writes, and the end is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dapt_contract.failure import Cause
from dapt_contract.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_operator.testing.cluster import OperatorKilledError
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, facts_for, full_digest, healthy, measure, pretrain_facts
from support.worlds import World


def troubled(stage: StageFile) -> Ends | Stays:
    """A life with a retry in the middle."""
    if stage.kind == "pretrain" and stage.run.try_number == 1:
        return Ends(75, message="a rank is lost", cause=Cause.INFRASTRUCTURE)
    return healthy(stage)


def simple() -> World:
    """One node; pods of deleted Jobs are gone at once."""
    return World()


def gang() -> World:
    """Two nodes, a queue, a volume of its own, time to save, and everything collected in the end."""
    spec = {
        "resources": {"nodes": 2},
        "pretraining": {"globalBatchSize": 16},
        "queue": "team",
        "cleanup": {"afterSeconds": 600, "volume": "Delete"},
    }
    world = World(spec, {"storage": CLAIM, "launcher": "JobSet"}, graceful=True)
    world.cluster.queues["team"] = ""
    return world


def rolled_back() -> World:
    """Two attempts with evaluations beside them, blends, and a suspension at the end."""
    spec = {
        "pretraining": {"checkpoints": {"count": 2}},
        "evaluation": {"when": "everyCheckpoint"},
        "selection": {"interpolate": [0.5, 1.0], "averageLast": 1},
        "gates": {"onBreach": "Rollback"},
    }
    world = World(spec, {"evaluation": {"concurrency": 2}})
    world.script = forgetting()
    return world


def forgetting() -> Script:
    """The first attempt tells of one checkpoint and is stopped after the next; evaluations agree with the training."""
    told: set[str] = set()

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "evaluate":
            assert isinstance(stage.config, EvaluateConfig)
            found = measure(digest=full_digest(stage.config))
            return Ends(facts=EvaluateFacts(candidate=stage.config.candidate, measure=found))
        if stage.kind != "pretrain":
            return healthy(stage)
        rows = [checkpoint(10, 2.9), checkpoint(20, 2.8, 0.7)]
        if stage.run.key not in told:
            told.add(stage.run.key)
            return Stays(Progress(run_key=stage.run.key, stage="pretrain", checkpoints=rows[:1]))
        if stage.run.attempt > 1:
            return Ends(facts=pretrain_facts([checkpoint(10, 2.9), checkpoint(30, 2.7)]))
        facts = pretrain_facts(rows, "ForgettingLimit", message="past it")
        return Ends(76, facts=facts, message="past it", cause=Cause.FORGETTING_LIMIT)

    return script


CLAIM = {"claimTemplate": {"accessModes": ["ReadWriteMany"]}, "existingClaim": None}


def trouble(world: World) -> bool:
    """In the gang one pod fails while its peer goes on."""
    if len(world.cluster.live_jobs(world.key)) != 1 or world.job["spec"].get("suspend"):
        return False
    labels = world.job["metadata"]["labels"]
    if world.job["kind"] == "JobSet" and (labels["dapt.dev/stage"], labels["dapt.dev/try"]) == (
        "pretrain", "1",
    ):  # fmt: skip
        pods = world.cluster.objects(world.key, "Pod")
        name = world.job["metadata"]["name"]
        if not any(pod["metadata"]["name"].startswith(name) for pod in pods):
            world.cluster.break_pod(
                world.key, 1, Ends(75, message="a rank is lost", cause=Cause.INFRASTRUCTURE)
            )
            return True
    return False


def script(stage: StageFile) -> Ends | Stays:
    if stage.kind == "pretrain" and stage.run.try_number == 1:
        return Stays()
    return Ends(facts=facts_for(stage))


def live_through(world: World, crash_at: int | None, *, after: bool) -> int:
    """A whole life with one crash and one suspension; how many writes it took."""
    is_gang = world.cluster.graceful
    world.cluster.crash_at, world.cluster.crash_after = crash_at, after
    suspended = False
    for _ in range(500):
        try:
            if not world.visit().is_empty:
                continue
        except OperatorKilledError:
            continue
        if world.running == "finetune" and not suspended and not world.job["spec"].get("suspend"):
            suspended = True
            world.cluster.advance(30)
            world.cluster.run_pods(world.key, lambda stage: Stays())
            world.edit(suspend=True)
            continue
        if suspended and world.status["phase"] == "Suspended" and world.running is None:
            if world.cluster.run_pods(world.key, healthy):
                continue
            world.cluster.advance(30)
            if world.visit().is_empty:
                world.edit(suspend=False)
            continue
        if is_gang and trouble(world):
            continue
        if world.cluster.run_pods(world.key, world.script or (script if is_gang else troubled)):
            continue
        if world.status["phase"] == "Published" and world.plans[-1].requeue_after is None:
            return len(world.cluster.verbs)
        world.cluster.advance(15)
    raise AssertionError(f"no end with a crash at {crash_at}")


def ending(world: World) -> dict[str, Any]:
    """What must be the same: all but moments."""
    status = world.status
    kept = {
        name: status[name] for name in ("phase", "selected", "output", "resolved", "frozen", "candidates")
    }
    kept["stages"] = sorted(
        (one["name"], one["attempt"], one.get("candidate", ""), one["state"], one["try"])
        for one in status["stages"]
    )
    kept["attempts"] = status["attempts"]
    kept["conditions"] = [(c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"]]
    kept["objects"] = sorted(place for place in world.cluster._stored[world.key].objects)
    kept["restarts"] = status["usage"]["restarts"]
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]


def unbroken(make: Callable[[], World]) -> tuple[dict[str, Any], int, list[str]]:
    world = make()
    writes = live_through(world, None, after=False)
    return ending(world), writes, world.tries


UNBROKEN = {make: unbroken(make) for make in (simple, gang, rolled_back)}
POINTS = [(make, point) for make, (_, writes, _) in UNBROKEN.items() for point in range(-1, writes)]


@pytest.mark.parametrize("make", [simple, gang])
def test_the_unbroken_life_has_a_retry_and_a_suspension(make: Callable[[], World]) -> None:
    assert UNBROKEN[make][2] == [
        "prepare/1", "baseline/1", "pretrain/1", "pretrain/2", "evaluate/1", "finetune/1", "finetune/2", "verify/1",
        "publish/1",
    ]  # fmt: skip


def test_the_life_with_a_rollback_has_evaluations_beside_both_attempts() -> None:
    assert UNBROKEN[rolled_back][2] == [
        "prepare/1", "baseline/1", "pretrain/1", "evaluate/1", "pretrain/1", "evaluate/1", "evaluate/1", "blend/1",
        "evaluate/1", "blend/1", "evaluate/1", "evaluate/1", "finetune/1", "finetune/2", "verify/1", "publish/1",
    ]  # fmt: skip


def test_the_gangs_life_uses_every_verb() -> None:
    world = gang()
    live_through(world, None, after=False)
    used = {
        verb.partition("/")[0] for verb in world.cluster.verbs if not verb.startswith(("record", "write"))
    }
    assert used == {
        "apply Secret", "apply PersistentVolumeClaim", "apply ConfigMap", "apply JobSet", "delete Pod", "delete JobSet",
        "delete ConfigMap", "delete PersistentVolumeClaim",
    }  # fmt: skip
    assert ending(world)["objects"] == [["Secret", "dapt-clinical-00000001-signing"]]


@pytest.mark.parametrize(("make", "crash_at"), POINTS, ids=[f"{make.__name__}-{at}" for make, at in POINTS])
def test_a_crash_at_any_write_ends_the_same(make: Callable[[], World], crash_at: int) -> None:
    """After each write, which is before the next; -1 is before the first."""
    expected, _, tries = UNBROKEN[make]
    world = make()
    live_through(world, max(crash_at, 0), after=crash_at >= 0)
    assert ending(world) == expected
    assert sorted(world.tries) == sorted(tries)
    assert len(set(world.cluster.created)) == len(world.cluster.created)
