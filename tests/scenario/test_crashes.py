"""The operator is killed before or after any of its writes, and the end is the same."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_operator.testing.cluster import OperatorKilledError
from dapt_operator.testing.objects import Ends, Stays
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
    world.script = Forgetting()
    return world


class Forgetting:
    """The first attempt tells of one checkpoint and is stopped after the next; evaluations agree with the training."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def __call__(self, stage: StageFile) -> Ends | Stays:
        if stage.kind == "evaluate":
            assert isinstance(stage.config, EvaluateConfig)
            found = measure(digest=full_digest(stage.config))
            return Ends(facts=EvaluateFacts(candidate=stage.config.candidate, measure=found))
        if stage.kind != "pretrain":
            return healthy(stage)
        rows = [checkpoint(10, 2.9), checkpoint(20, 2.8, 0.7)]
        if stage.run.key not in self.told:
            self.told.add(stage.run.key)
            return Stays(Progress(run_key=stage.run.key, stage="pretrain", checkpoints=rows[:1]))
        if stage.run.attempt > 1:
            return Ends(facts=pretrain_facts([checkpoint(10, 2.9), checkpoint(30, 2.7)]))
        facts = pretrain_facts(rows, "ForgettingLimit", message="past it")
        return Ends(76, facts=facts, message="past it", cause=Cause.FORGETTING_LIMIT)


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


@dataclass
class Life:
    """A whole life with at most one crash and one suspension."""

    world: World
    is_suspended: bool = False
    """Whether it has been suspended already."""

    def step(self) -> bool:
        """Let the operator, the user, the pods or time do the next thing; returns whether that was the end."""
        world = self.world
        is_gang = world.cluster.graceful
        try:
            if not world.reconcile().is_empty:
                return False
        except OperatorKilledError:
            return False
        if world.running == "finetune" and not self.is_suspended and not world.job["spec"].get("suspend"):
            self.is_suspended = True
            world.cluster.advance(30)
            world.cluster.run_pods(world.key, lambda stage: Stays())
            world.edit(suspend=True)
            return False
        if self.is_suspended and world.status["phase"] == "Suspended" and world.running is None:
            if world.cluster.run_pods(world.key, healthy):
                return False
            world.cluster.advance(30)
            if world.reconcile().is_empty:
                world.edit(suspend=False)
            return False
        if is_gang and trouble(world):
            return False
        if world.cluster.run_pods(world.key, world.script or (script if is_gang else troubled)):
            return False
        if world.status["phase"] == "Published" and world.plans[-1].requeue_after is None:
            return True
        world.cluster.advance(15)
        return False

    def live(self) -> Iterator[None]:
        """Go on to the end; yields before each step."""
        for _ in range(500):
            yield
            if self.step():
                return
        raise AssertionError(f"no end with a crash at {self.world.cluster.crash_at}")

    def branch(self) -> Life:
        """Return a life that goes on from here by itself; plans and runs are never changed and stay shared."""
        shared = {id(value): value for value in (*self.world.plans, *self.world.runs)}
        return copy.deepcopy(self, shared)


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
    kept["objects"] = sorted(place for place in world.cluster.stored(world.key).objects)
    kept["restarts"] = status["usage"]["restarts"]
    return json.loads(json.dumps(kept))


def unbroken(make: Callable[[], World]) -> tuple[dict[str, Any], int, list[str]]:
    world = make()
    for _ in Life(world).live():
        pass
    return ending(world), len(world.cluster.verbs), world.tries


UNBROKEN = {make: unbroken(make) for make in (simple, gang, rolled_back)}
POINTS = [(make, point) for make, (_, writes, _) in UNBROKEN.items() for point in range(-1, writes)]


@functools.cache
def moments(make: Callable[[], World]) -> list[Life]:
    """Return the unbroken life as it was before each of its steps."""
    life = Life(make())
    return [life.branch() for _ in life.live()]


@pytest.mark.parametrize("make", [simple, gang])
def test_scenario_without_crashes_has_a_retry_and_a_suspension(make: Callable[[], World]) -> None:
    assert UNBROKEN[make][2] == [
        "destination/1",
        "prepare/1",
        "baseline/1",
        "pretrain/1",
        "pretrain/2",
        "evaluate/1",
        "finetune/1",
        "finetune/2",
        "verify/1",
        "publish/1",
    ]


def test_rollback_scenario_evaluates_in_parallel_with_both_attempts() -> None:
    assert UNBROKEN[rolled_back][2] == [
        "destination/1",
        "prepare/1",
        "baseline/1",
        "pretrain/1",
        "evaluate/1",
        "pretrain/1",
        "evaluate/1",
        "evaluate/1",
        "blend/1",
        "evaluate/1",
        "blend/1",
        "evaluate/1",
        "evaluate/1",
        "finetune/1",
        "finetune/2",
        "verify/1",
        "publish/1",
    ]


def test_gang_scenario_uses_every_cluster_verb() -> None:
    world = gang()
    for _ in Life(world).live():
        pass
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
    verb = max(crash_at, 0)
    # Up to the crash all lives are the same: go on from the unbroken one's last moment before that verb.
    *_, life = (moment for moment in moments(make) if len(moment.world.cluster.verbs) <= verb)
    life = life.branch()
    world = life.world
    world.cluster.crash_at, world.cluster.crash_after = verb, crash_at >= 0
    for _ in life.live():
        pass
    assert world.cluster.crash_at is None, "the operator was killed"
    assert ending(world) == expected
    assert sorted(world.tries) == sorted(tries)
    assert len(set(world.cluster.created)) == len(world.cluster.created)
