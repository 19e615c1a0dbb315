"""The end is the end: nothing runs once the status says so, nor while the resource is being deleted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.names import object_name
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.launchers.labels import identity_of
from dapt_operator.testing.invariants import ImpossibleWorldError, check_end
from dapt_operator.testing.objects import Stays
from support.builders import healthy
from support.worlds import World

SPENT: dict[str, Any] = {"limits": {"gpuHours": 1}}
RETAIN: dict[str, Any] = {"cleanup": {"finishedRuns": "Retain"}}
"""Of a life whose ended Jobs can be brought back."""


def job_of(world: World, stage: str) -> dict[str, Any]:
    """The newest Job of a stage."""
    jobs = world.cluster.objects(world.key, "Job")
    return [job for job in jobs if job["metadata"]["labels"]["dapt.dev/stage"] == stage][-1]


def bring_back(world: World, stage: str, **metadata: str) -> None:
    """Bring the newest Job of a stage back as a backup does: its pods are created once more."""
    job = job_of(world, stage)
    world.cluster.delete_object(world.key, "Job", job["metadata"]["name"])
    world.cluster.restore(world.key, job | {"status": {}, "metadata": job["metadata"] | metadata})


def published() -> World:
    world = World(RETAIN)
    world.live()
    assert world.status["phase"] == "Published"
    return world


# --- before the end ---


def test_stale_run_is_stopped_before_the_end_is_written() -> None:
    world = World(RETAIN, graceful=True)
    world.live_until("publish")
    bring_back(world, "verify")
    world.end("publish", healthy(world.runs[-1]))  # type: ignore[arg-type]
    world.reconcile()
    assert world.status["phase"] == "Publishing"
    assert world.condition("Finished")[0] == "False"
    assert world.condition("Reconciling")[1] == "Stopping"
    assert world.running == "verify"
    world.live(healthy)
    assert world.running is None
    assert world.condition("Finished")[:2] == ("True", "Published")


@pytest.mark.parametrize("crash_at", range(-1, 5))
def test_killed_at_any_write_of_the_end_nothing_is_left_running(crash_at: int) -> None:
    world = World(RETAIN, graceful=True)
    world.live_until("publish")
    bring_back(world, "verify")
    world.end("publish", healthy(world.runs[-1]))  # type: ignore[arg-type]
    world.cluster.crash_at = len(world.cluster.verbs) + max(crash_at, 0)
    world.cluster.crash_after = crash_at >= 0
    for _ in range(10):
        world.crashing_reconcile()
        world.cluster.run_pods(world.key, healthy)
    assert world.cluster.crash_at is None, "the operator was killed"
    assert world.condition("Finished")[:2] == ("True", "Published")
    assert world.running is None


def test_budget_that_ends_waits_for_the_evaluation_alongside() -> None:
    spec = {**SPENT, "evaluation": {"when": "everyCheckpoint"}, "pretraining": {"checkpoints": {"count": 2}}}
    world = World(spec, {"evaluation": {"concurrency": 2}}, graceful=True)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.cluster.advance(3600)
    world.live()
    assert world.condition("Finished")[:2] == ("True", "BudgetExhausted")
    assert world.running is None


def test_job_that_somebody_s_finalizer_keeps_does_not_hold_up_the_end() -> None:
    world = World(RETAIN)
    world.live_until("publish")
    bring_back(world, "verify", deletionTimestamp="2026-01-31T12:00:00Z")
    world.end("publish", healthy(world.runs[-1]))  # type: ignore[arg-type]
    world.settle()
    assert world.condition("Finished")[:2] == ("True", "Published")


@pytest.mark.parametrize("stage", ["prepare", "pretrain"])
def test_deleted_job_that_somebody_s_finalizer_keeps_does_not_hold_up_its_stage(stage: str) -> None:
    world = World()
    world.live_until(stage)
    world.job["metadata"]["deletionTimestamp"] = timestamp(world.cluster.now)
    world.cluster.now += timedelta(seconds=29)
    world.settle()
    assert f"{stage}/2" not in world.tries, "its pods may not be reported yet"
    world.cluster.now += timedelta(seconds=1)
    world.settle()
    assert world.tries[-1] == f"{stage}/2"


def test_the_end_written_while_a_run_goes_on_is_impossible() -> None:
    ended = {"conditions": [{"type": "Finished", "status": "True", "reason": "Published"}]}
    job = {"kind": "Job", "metadata": {"name": "late"}}
    with pytest.raises(ImpossibleWorldError, match="the end was written while late was live"):
        check_end({}, ended, [job])
    check_end(ended, ended, [job])
    check_end({}, ended, [{"kind": "Job", "metadata": {"name": "late", "deletionTimestamp": "now"}}])


# --- after the end ---


@pytest.mark.parametrize(
    "metadata", [{}, {"uid": "restored"}], ids=["reported late", "restored from a backup"]
)
def test_job_that_comes_back_after_the_end_is_deleted(metadata: dict[str, str]) -> None:
    world = published()
    before, writes = world.status, world.cluster.writes
    bring_back(world, "pretrain", **metadata)
    assert world.running == "pretrain"
    world.settle()
    assert world.running is None
    assert (world.status, world.cluster.writes) == (before, writes)


def test_unknown_job_that_is_reported_after_the_end_is_deleted() -> None:
    world = published()
    job = job_of(world, "publish") | {"status": {}}
    known = identity_of(job)
    assert known is not None
    unknown = RunIdentity.model_validate(known.model_dump() | {"try_number": 2, "fence": known.fence + 1})
    metadata = job["metadata"] | {"name": object_name("clinical", "publish", unknown.key), "uid": "late"}
    for labels in (metadata["labels"], job["spec"]["template"]["metadata"]["labels"]):
        labels |= {"dapt.dev/try": "2", "dapt.dev/fence": str(unknown.fence)}
    world.cluster.restore(world.key, job | {"metadata": metadata})
    assert world.running == "publish"
    world.settle()
    assert world.running is None


# --- the resource is being deleted ---


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "publish"])
def test_training_stops_although_somebody_s_finalizer_keeps_the_resource(stage: str) -> None:
    world = World(RETAIN, graceful=True)
    world.live_until(stage)
    world.cluster.run_pods(world.key, lambda stage: Stays())
    writes, created = world.cluster.writes, len(world.cluster.created)
    world.cluster.remove_later(world.key)
    plan = world.reconcile()
    assert [removal.name for removal in plan.delete] == [world.job["metadata"]["name"]]
    assert world.reconcile().delete == (), "nothing is deleted twice"
    world.cluster.advance(130)
    world.settle()
    assert world.running is None
    assert (world.cluster.writes, len(world.cluster.created)) == (writes, created)


def test_adaptation_of_another_installation_is_left_alone_while_it_is_deleted() -> None:
    world = World(RETAIN)
    world.instance = "dapt-system/dapt"
    world.live_until("pretrain")
    world.instance = "team-a/dapt"
    world.cluster.remove_later(world.key)
    plan = world.reconcile()
    assert plan.is_foreign
    assert plan.is_empty
    assert world.running == "pretrain"
