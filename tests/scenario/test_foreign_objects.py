"""Tests objects that claim to be ours: a self-made Job, copied and removed labels, a status that was lost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.names import object_name
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.stage_run import JsonObject
from dapt_operator.testing import cluster
from dapt_operator.testing.objects import Stays, copy, job_uid
from support.builders import healthy
from support.worlds import World

HUGE = 10**18


RETAIN: dict[str, Any] = {"cleanup": {"finishedRuns": "Retain"}}


def training(spec: dict[str, Any] | None = None, **offered: Any) -> World:
    """Pretraining runs, and the ledger has the uid of its Job."""
    world = World(spec, offered=offered)
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    return world


def self_made(world: World, **changes: int | str) -> JsonObject:
    """A Job that somebody has made after the running one; owner, labels and name are as ours would be."""
    made = copy(world.job)
    run = world.runs[-1].run
    identity = RunIdentity.model_validate(run.model_dump() | changes)
    labels = {
        "dapt.dev/attempt": str(identity.attempt),
        "dapt.dev/try": str(identity.try_number),
        "dapt.dev/fence": str(identity.fence),
    } | ({"dapt.dev/candidate": identity.candidate} if identity.candidate else {})
    made["metadata"] |= {"name": object_name(identity.name, identity.stage, identity.key), "uid": "self-made"}
    for metadata in (made["metadata"], made["spec"]["template"]["metadata"]):
        metadata["labels"] |= labels
    return made


def add(world: World, made: JsonObject) -> None:
    world.cluster.stored(world.key).objects[(made["kind"], made["metadata"]["name"])] = made


def unchanged(world: World) -> bool:
    """Whether a reconcile does nothing at all."""
    before = world.status
    return world.reconcile().is_empty and world.status == before


@pytest.mark.parametrize(
    "changes",
    [
        {"try_number": 2, "fence": HUGE},
        {"try_number": HUGE, "fence": 5},
        {"try_number": 2, "attempt": 17, "fence": 5},
        {"try_number": 2, "fence": 1},
    ],
    ids=["fence", "number", "attempt", "old fence"],
)
@pytest.mark.parametrize("launcher", ["IndexedJob", "JobSet"])
def test_self_made_job_changes_nothing(launcher: str, changes: dict[str, int]) -> None:
    world = training(launcher=launcher)
    if launcher == "JobSet":
        made = copy(world.job)
        made["metadata"] |= {"name": "copied", "uid": "self-made"}
    else:
        made = self_made(world, **changes)
    add(world, made)
    assert unchanged(world)
    world.cluster.delete_object(world.key, made["kind"], made["metadata"]["name"])
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/2") == 0


def test_job_that_takes_the_place_of_a_deleted_one_does_not_speak_for_it() -> None:
    world = training()
    made = copy(world.job)
    world.cluster.delete_jobs(world.key)
    made["metadata"]["uid"] = "self-made"
    made["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}
    add(world, made)
    world.cluster.advance(11)
    world.reconcile()
    record = next(one for one in world.status["ledger"]["runs"] if one["stage"] == "pretrain")
    assert (world.tries[-1], record["try"], record.get("failures", {})) == ("pretrain/2", 2, {})
    world.live()
    assert world.status["phase"] == "Published"


@pytest.mark.parametrize("has_failed", [True, False])
def test_job_that_takes_the_place_of_a_jobsets_job_does_not_speak_for_it(
    monkeypatch: pytest.MonkeyPatch, has_failed: bool
) -> None:
    """The JobSet controller makes a deleted Job again, too: that costs what the deletion of a Job costs."""
    world = training(RETAIN, launcher="JobSet")
    name = world.job["metadata"]["name"]
    child = job_uid(world.job)
    record = next(one for one in world.status["ledger"]["runs"] if one["stage"] == "pretrain")
    assert record["childUid"] == child
    monkeypatch.setattr(
        cluster,
        "job_uid",
        lambda gang: "self-made" if gang["metadata"]["name"] == name else job_uid(gang),
    )
    (made,) = (
        pod
        for (kind, _), pod in world.cluster.stored(world.key).objects.items()
        if kind == "Pod" and pod["metadata"]["ownerReferences"][0]["uid"] == child
    )
    made["metadata"]["ownerReferences"][0]["uid"] = "self-made"
    if has_failed:
        made["status"]["containerStatuses"][0]["state"] = {
            "terminated": {"exitCode": 64, "message": "theirs"}
        }
        made["status"]["phase"] = "Failed"
    world.cluster.touch(world.key)
    world.cluster.advance(11)
    removed = [(one.kind, one.name) for one in world.reconcile().delete]
    assert removed == [("JobSet", name)]
    assert world.tries[-1] == "pretrain/1", "the pods of that Job end before the next run starts"
    world.settle()
    record = next(one for one in world.status["ledger"]["runs"] if one["stage"] == "pretrain")
    assert (world.tries[-1], record["try"], record.get("failures", {})) == ("pretrain/2", 2, {})
    assert "childUid" not in record
    world.live()
    assert world.status["phase"] == "Published"


def test_pod_with_copied_labels_changes_nothing() -> None:
    world = training()
    objects = world.cluster.stored(world.key).objects
    copied = world.cluster.objects(world.key, "Pod")[-1]
    copied["metadata"]["ownerReferences"][0]["uid"] = "self-made"
    copied["metadata"]["name"] = f"{world.job['metadata']['name']}-9"
    copied["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 64, "message": "theirs"}}
    copied["status"]["phase"] = "Failed"
    objects[("Pod", copied["metadata"]["name"])] = copied
    assert unchanged(world)


def _without(labels: JsonObject) -> None:
    labels.clear()


def _another_try(labels: JsonObject) -> None:
    labels |= {"dapt.dev/try": "3", "dapt.dev/fence": str(HUGE)}


@pytest.mark.parametrize("change", [_without, _another_try])
@pytest.mark.parametrize("launcher", ["IndexedJob", "JobSet"])
def test_job_whose_labels_are_changed_and_put_back_stays_the_one_gang(
    launcher: str, change: Callable[[JsonObject], None]
) -> None:
    world = training(launcher=launcher)
    labels = world.job["metadata"]["labels"]
    before = dict(labels)
    change(labels)
    world.cluster.advance(60)
    assert unchanged(world)
    labels.clear()
    labels |= before
    assert unchanged(world)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/2") == 0


def _lose_status(world: World) -> None:
    world.cluster.stored(world.key).resource.pop("status")
    world.cluster.touch(world.key)


def _remove_secret(world: World) -> None:
    """As the condition `NameTaken` tells: nothing says any more who made the key in it."""
    (secret,) = world.cluster.objects(world.key, "Secret")
    world.cluster.delete_object(world.key, "Secret", secret["metadata"]["name"])


def test_run_after_a_lost_status_has_a_fence_above_all_earlier_ones() -> None:
    """Checkpoints on the volume have the fences of runs that nobody remembers any more."""
    world = training()
    resource = world.cluster.stored(world.key).resource
    resource["metadata"]["creationTimestamp"] = timestamp(world.cluster.now - timedelta(hours=1))
    last = world.runs[-1].run.fence
    _lose_status(world)
    for kind in ("Job", "Pod", "ConfigMap"):
        for item in world.cluster.objects(world.key, kind):
            world.cluster.delete_object(world.key, kind, item["metadata"]["name"])
    world.cluster.created.clear()
    world.reconcile()
    assert world.condition("Stalled")[1] == "NameTaken"
    _remove_secret(world)
    world.reconcile()
    (first,) = world.cluster.objects(world.key, "Job")
    assert int(first["metadata"]["labels"]["dapt.dev/fence"]) == 3601 > last
    world.live()
    assert world.status["phase"] == "Published"


def test_runs_that_exist_are_known_again_after_a_lost_status() -> None:
    world = training(RETAIN)
    fences = [run.run.fence for run in world.runs]
    _lose_status(world)
    world.settle()
    assert world.status["ledger"]["fence"] == max(fences)
    assert world.running == "pretrain"
    world.live(healthy)
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/2") == 0


def test_runs_that_a_restored_status_does_not_know_are_known_again() -> None:
    """The backup of the status is older than the runs: the living gang must not get a second one next to it."""
    world = World(RETAIN)
    world.live_until("baseline")
    backup = world.status
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.settle()
    world.cluster.stored(world.key).resource["status"] = backup
    world.cluster.touch(world.key)
    world.settle()
    assert world.running == "pretrain"
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/2") == 0


def test_live_run_of_a_lost_status_is_stopped_where_the_ended_runs_are_gone() -> None:
    """The finished stages report again, and the training continues after them; no run is next to another."""
    world = training()
    fence = world.runs[-1].run.fence
    _lose_status(world)
    world.cluster.created.clear()
    _remove_secret(world)
    world.settle()
    assert world.running == "destination"
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/2") == 1
    assert world.runs[-1].run.fence > fence


def test_of_more_runs_than_the_ledger_takes_up_the_newest_are_known_again() -> None:
    """The status is lost while many Jobs exist."""
    world = training()
    _lose_status(world)
    world.cluster.advance(3600)
    resource = world.cluster.stored(world.key).resource
    resource["metadata"]["creationTimestamp"] = timestamp(world.cluster.now - timedelta(hours=1))
    for number in range(100, 160):
        other = self_made(world, candidate=f"a1-s{number}", fence=number)
        other["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
        add(world, other)
    world.reconcile()
    assert world.running == "pretrain"
    fences = {record["fence"] for record in world.status["ledger"]["runs"]}
    assert fences == {world.runs[-1].run.fence, *range(141, 160)}
