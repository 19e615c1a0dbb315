"""Some time after the end the objects of the runs are removed, once; the resource never is."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World

GANG: dict[str, Any] = {"resources": {"nodes": 2}, "pretraining": {"globalBatchSize": 16}}
TEMPLATE: dict[str, Any] = {
    "storage": {"existingClaim": None, "claimTemplate": {"accessModes": ["ReadWriteMany"]}}
}


def kinds(world: World) -> list[str]:
    """Kinds of all that is there, without pods."""
    found = world.cluster.stored(world.key).objects
    return sorted({kind for kind, _ in found if kind != "Pod"})


def twice(stage: StageFile) -> Ends | Stays:
    if stage.kind == "pretrain" and stage.run.try_number == 1:
        return Ends(75, cause=Cause.INFRASTRUCTURE)
    return healthy(stage)


def ended(**cleanup: Any) -> World:
    """An adaptation whose runs were kept, at its end."""
    world = World({**GANG, "cleanup": {"finishedRuns": "Retain"} | cleanup}, TEMPLATE)
    world.live(twice, until=lambda world: world.status.get("phase") == "Published")
    return world


ALL = ["ConfigMap", "Job", "PersistentVolumeClaim", "Secret", "Service"]


@pytest.mark.parametrize(
    ("volume", "left"), [("Retain", ["PersistentVolumeClaim", "Secret"]), ("Delete", ["Secret"])]
)
def test_everything_but_the_secret_goes_when_its_time_has_come(volume: str, left: list[str]) -> None:
    world = ended(afterSeconds=3600, volume=volume)
    assert kinds(world) == ALL
    assert world.reconcile().requeue_after == 3600.0
    world.cluster.advance(3599)
    assert world.reconcile().is_empty
    world.cluster.advance(1)
    before = world.status
    plan = world.reconcile()
    assert kinds(world) == left
    assert len([one for one in plan.delete if one.kind == "ConfigMap"]) == 9  # all tries, the failed one too
    after = world.status
    assert after["ledger"].pop("cleaned") == world.cluster.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert after == before
    assert world.reconcile().is_empty
    assert world.plans[-1].requeue_after is None
    assert world.status["phase"] == "Published"


def test_cleanup_is_done_once() -> None:
    world = ended(afterSeconds=0)
    world.settle()
    verbs = len(world.cluster.verbs)
    world.edit(cleanup={"volume": "Delete"})
    world.settle()
    assert [verb for verb in world.cluster.verbs[verbs:] if verb.startswith("delete")] == []
    assert world.status["observedGeneration"] == 2


def test_without_a_time_everything_is_kept() -> None:
    world = ended(volume="Delete")
    world.cluster.advance(10**8)
    assert world.reconcile().is_empty
    assert world.plans[-1].requeue_after is None
    assert kinds(world) == ALL


def test_a_claim_that_was_there_before_is_never_removed() -> None:
    world = World({"cleanup": {"afterSeconds": 0, "volume": "Delete"}})
    world.live(until=lambda world: "cleaned" in world.status.get("ledger", {}))
    deleted = {verb.partition("/")[0] for verb in world.cluster.verbs if verb.startswith("delete")}
    assert deleted == {"delete Job", "delete ConfigMap"}


def test_a_time_that_is_written_after_the_end_counts_from_the_end() -> None:
    world = World()
    world.live()
    world.cluster.advance(1000)
    world.edit(cleanup={"afterSeconds": 1500})
    world.settle()
    assert world.plans[-1].requeue_after == 500.0


def test_an_adaptation_that_stalls_is_not_collected() -> None:
    world = World({"cleanup": {"afterSeconds": 0}})
    world.live(lambda stage: Ends(64, cause=Cause.BAD_INPUT))
    world.cluster.advance(10**6)
    assert world.reconcile().delete == ()


def test_a_finished_one_stays_finished_when_its_jobs_are_gone() -> None:
    world = World()
    world.live()
    before = world.status
    world.cluster.delete_jobs(world.key)
    world.cluster.profiles.clear()
    world.cluster.advance(10**6)
    assert world.reconcile().is_empty
    assert world.status == before


def test_an_edit_after_the_end_is_seen_and_changes_nothing() -> None:
    world = World()
    world.live()
    before = world.status
    world.edit(limits={"gpuHours": 99}, suspend=True)
    world.settle()
    after = world.status
    assert after["observedGeneration"] == 2
    assert {one["observedGeneration"] for one in after["conditions"]} == {2}
    for status in (before, after):
        status.pop("observedGeneration")
        for one in status["conditions"]:
            one.pop("observedGeneration")
    assert after == before
