"""Tests pods whose Job was deleted without them, as `kubectl delete job --cascade=orphan` does."""

from __future__ import annotations

from dapt_operator.testing.objects import Stays
from support.builders import healthy
from support.worlds import World


def orphaned(world: World) -> str:
    """Delete the live Job and leave its pod, as the garbage collector does; return the pod's name."""
    objects = world.cluster.stored(world.key).objects
    name = world.job["metadata"]["name"]
    del objects["Job", name]
    objects["Pod", f"{name}-0"]["metadata"]["ownerReferences"] = []
    world.cluster.touch(world.key)
    return f"{name}-0"


def running(stage: str) -> World:
    world = World({"cleanup": {"finishedRuns": "Retain"}})  # of a run nothing goes but such pods
    world.live_until(stage)
    world.cluster.run_pods(world.key, lambda run: Stays())
    world.settle()
    world.cluster.advance(60)
    return world


def pods(world: World) -> list[str]:
    return [pod["metadata"]["name"] for pod in world.cluster.objects(world.key, "Pod")]


def test_orphaned_pod_is_deleted_once_the_end_of_its_run_is_stored() -> None:
    world = running("pretrain")
    name = orphaned(world)
    first = world.reconcile()
    assert (first.status is None, first.delete) == (False, ())
    assert [(one.kind, one.name, one.grace_seconds) for one in world.reconcile().delete] == [
        ("Pod", name, None)
    ]
    assert name not in pods(world)
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/2") == 1


def test_orphaned_pod_of_a_suspended_run_is_deleted() -> None:
    world = running("pretrain")
    world.edit(suspend=True)
    name = orphaned(world)
    world.settle()
    assert name not in pods(world)


def test_orphaned_pod_is_deleted_while_the_spec_is_refused_and_after_the_end() -> None:
    world = running("pretrain")
    name = orphaned(world)
    left = world.cluster.stored(world.key).objects["Pod", name]
    world.edit(profile="other")
    world.settle()
    assert world.status["phase"] == "Stalled"
    assert name not in pods(world)
    world.edit(profile="bench")
    world.live()
    assert world.status["phase"] == "Published"
    world.cluster.restore(world.key, left)
    world.settle()
    assert name not in pods(world)


def test_pod_with_copied_labels_and_a_name_of_its_own_is_left_alone() -> None:
    world = running("pretrain")
    name = orphaned(world)
    objects = world.cluster.stored(world.key).objects
    pod = objects.pop(("Pod", name))
    pod["metadata"]["name"] = f"{name}-debug-copy"
    objects["Pod", pod["metadata"]["name"]] = pod
    world.live(healthy)
    assert world.status["phase"] == "Published"
    assert pod["metadata"]["name"] in pods(world)
