"""Whose adaptation it is, whose names they are, and which profile counts."""

from __future__ import annotations

import pytest

from dapt_operator.api.names import object_name
from support.builders import healthy, profile
from support.worlds import World


def job_name(world: World) -> str:
    """Of the first run, before it is made."""
    resource = world.cluster.observe(world.key).resource
    assert resource is not None
    other = World()
    other.settle()
    key = other.runs[0].run.key
    return object_name("clinical", "destination", key)


def test_the_first_operator_that_writes_a_status_owns_the_adaptation() -> None:
    world = World()
    world.instance = "dapt-system/dapt"
    world.live_until("baseline")
    assert world.status["digests"]["owner"] == "dapt-system/dapt"
    writes, verbs = world.cluster.writes, len(world.cluster.verbs)
    world.instance = "team-a/dapt"
    world.cluster.run_pods(world.key, healthy)
    plan = world.reconcile()
    assert plan.is_empty
    assert plan.requeue_after is None
    assert (world.cluster.writes, len(world.cluster.verbs)) == (writes, verbs)
    world.instance = "dapt-system/dapt"
    world.live()
    assert world.status["phase"] == "Published"


def test_an_adaptation_that_is_refused_is_owned_too() -> None:
    world = World({"profile": "other"})
    world.instance = "dapt-system/dapt"
    world.settle()
    assert world.status["digests"] == {"owner": "dapt-system/dapt"}
    world.instance = "team-a/dapt"
    world.edit(profile="bench")
    assert world.reconcile().is_empty


@pytest.mark.parametrize("kind", ["Job", "ConfigMap"])
def test_taken_name_stalls_and_recovers_when_it_is_free(kind: str) -> None:
    world = World()
    name = job_name(world)
    world.cluster.take_name(world.key, kind, name, "it belongs to Job other (uid 7)")
    plan = world.reconcile()
    assert plan.requeue_after == 15.0
    assert world.condition("Stalled") == (
        "True",
        "NameTaken",
        f"{kind} {name} exists already and is not this adaptation's: it belongs to Job other (uid 7); remove it, then"
        " this continues by itself",
    )
    assert world.condition("Reconciling") == ("False", "NameTaken", "waits for user action")
    assert "runs" not in world.status["ledger"]
    assert "frozen" not in world.status or world.status["frozen"] == {}
    writes = world.cluster.writes
    world.cluster.advance(15)
    assert world.reconcile().requeue_after == 15.0
    assert world.cluster.writes == writes
    world.cluster.free_name(world.key, kind, name)
    world.live()
    assert world.tries[:3] == ["destination/1", "prepare/1", "baseline/1"]
    assert world.status["phase"] == "Published"


def test_object_refused_again_by_a_quota_that_others_use_is_no_write_of_the_status() -> None:
    world, writes = World(), []
    for used in (4, 6):
        quota = f"exceeded quota: team, requested: count/jobs.batch=1, used: count/jobs.batch={used}, limited: x=4"
        world.cluster.refuse(world.key, "Job", f'jobs.batch "x" is forbidden: {quota}')
        world.settle()
        writes.append(world.cluster.writes)
    assert writes == [1, 1]  # the refusal


def test_refused_object_stalls_with_the_message_of_the_cluster_and_recovers() -> None:
    world = World()
    said = 'jobs.batch "x" is forbidden: exceeded quota: team, requested: count/jobs.batch=1, used: count/jobs.batch=4'
    name = job_name(world)
    world.cluster.refuse(world.key, "Job", said)
    plan = world.reconcile()
    assert plan.requeue_after == 15.0
    assert world.condition("Stalled") == (
        "True",
        "Refused",
        f"the cluster refuses Job {name}: {said}; once it is allowed, this continues by itself",
    )
    assert "runs" not in world.status["ledger"]
    writes = world.cluster.writes
    world.cluster.advance(15)
    assert world.reconcile().requeue_after == 15.0
    assert world.cluster.writes == writes
    world.cluster.refuse(world.key, "Job")
    world.live()
    assert world.tries[:3] == ["destination/1", "prepare/1", "baseline/1"]
    assert world.status["phase"] == "Published"


def test_name_taken_during_the_run_loses_no_progress() -> None:
    world = World()
    world.live_until("pretrain")
    other = World()
    other.live_until("evaluate")
    name = other.job["metadata"]["name"]
    world.cluster.take_name(world.key, "Job", name, "it has no owner")
    world.live(until=lambda world: world.status["phase"] == "Stalled")
    assert world.condition("Stalled")[1] == "NameTaken"
    assert world.status["stages"][-1]["name"] == "pretrain"
    assert world.status["stages"][-1]["state"] == "Succeeded"
    world.cluster.free_name(world.key, "Job", name)
    world.live()
    assert world.status["phase"] == "Published"


def test_leftover_config_map_without_a_job_is_skipped() -> None:
    """Killed after the ConfigMap and before the Job; then the spec is changed, and with it the stage's file."""
    world = World()
    world.cluster.crash_at, world.cluster.crash_after = 1, True  # it is asked for the key, then ConfigMap
    world.crashing_reconcile()
    assert world.runs == []
    world.edit(seed=99)
    world.live()
    assert world.tries[:2] == ["destination/2", "prepare/1"]
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_two_default_profiles_are_an_error_that_names_them() -> None:
    marked = {"annotations": {"dapt.dev/default": "true"}}
    world = World({"profile": None})
    for name in ("h100", "a100"):
        manifest = profile(name)
        world.cluster.add_profile(manifest | {"metadata": manifest["metadata"] | marked})
    world.settle()
    message = "2 AdaptationProfiles are marked as default (a100, h100): leave one marked, or name one in spec.profile"
    assert world.condition("Stalled") == ("True", "ProfileAmbiguous", message)
    assert world.condition("Accepted") == ("False", "ProfileAmbiguous", message)
    del world.cluster.profiles["a100"]
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["resolved"]["profile"] == "h100"


def test_a_named_profile_counts_whatever_is_marked() -> None:
    marked = {"annotations": {"dapt.dev/default": "true"}}
    world = World()
    for name in ("h100", "a100"):
        manifest = profile(name)
        world.cluster.add_profile(manifest | {"metadata": manifest["metadata"] | marked})
    world.settle()
    assert world.condition("Stalled")[0] == "False"
    assert world.status["resolved"]["profile"] == "bench"


def test_missing_default_profile_stalls_with_a_message() -> None:
    world = World({"profile": None})
    world.settle()
    assert world.condition("Stalled")[1:] == (
        "ProfileNotFound",
        "no AdaptationProfile is marked as default: name one in spec.profile",
    )
