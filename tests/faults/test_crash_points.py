"""The operator dies before or after each of its API writes, starts again, and the life ends as the unbroken one.

Four lives: a success with a retry and a suspension, the same as a gang in a queue, an attempt that forgets with its
rollback and selection, and a deletion in the middle of two stages with a new adaptation of the same name. A death is an
exception at the write, which unwinds the reconcile; the next one begins with nothing but what the cluster holds.
`make test` takes every point and stops living once the broken life is where the unbroken one has been, because from
there both are the same; `make faults` lives each to its end.
"""

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
from dapt_operator.testing.objects import Ends, OperatorKilledError, Stays
from support.builders import adaptation, checkpoint, facts_for, full_digest, healthy, measure, pretrain_facts
from support.campaigns import IS_WHOLE, Campaign
from support.worlds import World


def troubled(stage: StageFile) -> Ends | Stays:
    """A life with a retry in the middle."""
    if stage.kind == "pretrain" and stage.run.try_number == 1:
        return Ends(75, message="a rank is lost", cause=Cause.INFRASTRUCTURE)
    return healthy(stage)


def simple() -> Life:
    """One node; pods of deleted Jobs are gone at once."""
    return Life(World())


def gang() -> Life:
    """Two nodes, a queue, a volume of its own, time to save, and everything collected in the end."""
    spec = {
        "resources": {"nodes": 2},
        "pretraining": {"globalBatchSize": 16},
        "queue": "team",
        "cleanup": {"afterSeconds": 600, "volume": "Delete"},
    }
    world = World(spec, {"storage": CLAIM, "launcher": "JobSet"}, graceful=True)
    world.cluster.queues["team"] = ""
    return Life(world)


def rolled_back() -> Life:
    """Two attempts with evaluations beside them, blends, and a suspension at the end."""
    spec = {
        "pretraining": {"checkpoints": {"count": 2}},
        "evaluation": {"when": "everyCheckpoint"},
        "selection": {"interpolate": [0.5, 1.0], "averageLast": 1},
        "gates": {"onBreach": "Rollback"},
    }
    world = World(spec, {"evaluation": {"concurrency": 2}})
    world.script = Forgetting()
    return Life(world)


def deleted() -> Life:
    """Deleted while a gang trains and an evaluation runs, and created again under its name."""
    spec = {
        "resources": {"nodes": 2},
        "pretraining": {"globalBatchSize": 16, "checkpoints": {"count": 2}},
        "evaluation": {"when": "everyCheckpoint"},
    }
    world = World(
        spec, {"storage": CLAIM, "launcher": "JobSet", "evaluation": {"concurrency": 2}}, graceful=True
    )
    world.script = Reporting()
    return DeletedLife(world)


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


class Reporting:
    """The training reports its first checkpoint and goes on; the evaluation of that one goes on too."""

    def __call__(self, stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            rows = [checkpoint(10, 2.9)]
            return Stays(Progress(run_key=stage.run.key, stage="pretrain", checkpoints=rows))
        return Stays() if stage.kind == "evaluate" else healthy(stage)


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

    def moment(self) -> str:
        """Everything that the rest of this life depends on, as text."""
        cluster = self.world.cluster
        stored = cluster.stored(self.world.key)
        script = sorted(self.world.script.told) if isinstance(self.world.script, Forgetting) else []
        return json.dumps(
            [
                cluster.now.isoformat(),
                stored.resource,
                sorted((*place, item) for place, item in stored.objects.items()),
                sorted((name, reading.model_dump_json()) for name, reading in stored.progress.items()),
                sorted(stored.read_stage_files),
                cluster.created,
                self.is_suspended,
                script,
            ],
            sort_keys=True,
        )


@dataclass
class DeletedLife(Life):
    """A life that a user deletes in mid-stage; a finalizer of somebody else keeps it until its runs are gone."""

    is_new: bool = False
    """Whether it is the adaptation that has the name afterwards."""

    def step(self) -> bool:
        world = self.world
        if self.is_new:
            return super().step()
        try:
            if not world.reconcile().is_empty:
                return False
        except OperatorKilledError:
            return False
        cluster = world.cluster
        if cluster.observe(world.key).resource["metadata"].get("deletionTimestamp"):  # type: ignore[index]
            if not cluster.run_pods(world.key, healthy):
                assert not cluster.live_jobs(world.key), "nothing goes on of what is deleted"
                cluster.remove(world.key)
                cluster.add(adaptation(**world.spec))
                self.is_new, world.script = True, healthy
        elif world.alive == ["evaluate a1-s10", "pretrain"] and all(
            job["metadata"]["name"] in cluster.stored(world.key).read_stage_files
            for job in cluster.live_jobs(world.key)
        ):
            cluster.remove_later(world.key)
        elif not cluster.run_pods(world.key, world.script or healthy):
            cluster.advance(15)
        return False


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
    kept["tries"] = sorted(world.tries)
    return json.loads(json.dumps(kept))


@dataclass(frozen=True)
class Unbroken:
    """A life without a death."""

    moments: list[Life]
    """As it was before each of its steps."""
    passed: frozenset[str]
    """What `Life.moment` was at each of them."""
    end: dict[str, Any]
    verbs: list[str]
    """Its writes."""
    tries: list[str]


LIVES = (simple, gang, rolled_back, deleted)


@functools.cache
def unbroken(make: Callable[[], Life]) -> Unbroken:
    life = make()
    moments = [life.branch() for _ in life.live()]
    world = life.world
    passed = frozenset(moment.moment() for moment in moments)
    return Unbroken(moments, passed, ending(world), world.cluster.verbs, world.tries)


@pytest.mark.parametrize("make", [simple, gang])
def test_scenario_without_crashes_has_a_retry_and_a_suspension(make: Callable[[], Life]) -> None:
    assert unbroken(make).tries == [
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
    assert unbroken(rolled_back).tries == [
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


def test_deletion_scenario_deletes_two_live_runs_and_begins_again() -> None:
    deletions = [verb for verb in unbroken(deleted).verbs if verb.startswith("delete JobSet")]
    assert len(deletions) == len(set(deletions)), "each run once, whether it lived or had ended"
    assert len(deletions) == len(unbroken(deleted).tries)
    assert unbroken(deleted).tries == [
        "destination/1", "prepare/1", "baseline/1", "pretrain/1", "evaluate/1",
        "destination/1", "prepare/1", "baseline/1", "pretrain/1", "pretrain/2", "evaluate/1", "evaluate/1",
        "finetune/1", "finetune/2", "verify/1", "publish/1",
    ]  # fmt: skip


def test_gang_scenario_uses_every_cluster_verb() -> None:
    verbs = unbroken(gang).verbs
    used = {verb.partition("/")[0] for verb in verbs if not verb.startswith(("record", "write"))}
    assert used == {
        "apply Secret", "apply PersistentVolumeClaim", "apply ConfigMap", "apply JobSet", "delete Pod", "delete JobSet",
        "delete ConfigMap", "delete PersistentVolumeClaim",
    }  # fmt: skip
    assert unbroken(gang).end["objects"] == [["Secret", "dapt-clinical-00000001-signing"]]


def problem_of_death(make: Callable[[], Life], number: int, *, is_after: bool) -> str:
    """Kill the operator at this write of a life; return what is wrong with the rest of it, nothing mostly."""
    known = unbroken(make)
    # Up to the death all lives are the same: go on from the unbroken one's last moment before that write.
    *_, life = (moment for moment in known.moments if len(moment.world.cluster.verbs) <= number)
    life = life.branch()
    cluster = life.world.cluster
    cluster.crash_at, cluster.crash_after = number, is_after
    for _ in life.live():
        if cluster.crash_at is None and not IS_WHOLE and life.moment() in known.passed:
            return ""
    if cluster.crash_at is not None:
        return "the operator was not killed"
    end = ending(life.world)
    differing = sorted(name for name in end if end[name] != known.end[name])
    if differing:
        return "; ".join(f"{name} is {end[name]} and not {known.end[name]}" for name in differing)
    return "a run was created twice" if len(set(cluster.created)) < len(cluster.created) else ""


@pytest.mark.parametrize("make", LIVES)
def test_operator_that_dies_before_or_after_any_write_reaches_the_same_end(make: Callable[[], Life]) -> None:
    name = make.__name__.replace("_", "-")
    campaign = Campaign(f"crash-points-{name}", f"death before and after each write, {name} life")
    verbs = unbroken(make).verbs
    for number, verb in enumerate(verbs):
        for is_after in (False, True):
            case = f"{'after' if is_after else 'before'} write {number} ({verb})"
            try:
                problem = problem_of_death(make, number, is_after=is_after)
            except AssertionError as error:
                problem = f"{type(error).__name__}: {error}"
            campaign.count(case, problem)
    campaign.facts = {"writes": len(verbs)}
    campaign.finish()
