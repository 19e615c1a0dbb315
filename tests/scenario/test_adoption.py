"""A run that was created and not stored: it continues if it does the work that is due, else it is replaced."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World

NODES = "Unschedulable: 0/2 nodes are available"
PULL = 'ErrImagePull: failed to pull image "registry.example/dapt-trainer:1.0.0": not found'
BAD_INPUT = Ends(64, message="bad line", cause=Cause.BAD_INPUT)
OTHER_PODS: tuple[dict[str, Any], ...] = (
    {"resources": {"cpu": "3"}},
    {"resources": {"memory": "3Gi"}},
    {"credentials": [{"secretName": "dapt-hub", "use": "write"}]},
    {"queue": "team"},
)
"""Edits that change how a run is rendered and not what it does."""


def interrupted(stage: str = "pretrain") -> World:
    world = World()
    world.live_until_interrupted(stage)
    return world


def record(world: World, stage: str = "pretrain") -> dict[str, Any]:
    (found,) = [run for run in world.status["ledger"]["runs"] if run["stage"] == stage]
    return found


def test_run_that_was_not_stored_is_stored_as_it_was_created() -> None:
    world, other = interrupted(), World()
    other.live_until("pretrain")
    world.settle()
    assert world.tries == other.tries
    assert record(world) == record(other)


@pytest.mark.parametrize("edit", OTHER_PODS, ids=str)
def test_run_that_does_the_same_work_continues_with_the_pods_that_it_has(edit: dict[str, Any]) -> None:
    world = interrupted()
    world.edit(**edit)
    world.settle()
    assert world.running == "pretrain"
    assert record(world)["generation"] == 1
    assert world.status["observedGeneration"] == 2
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    assert record(world)["state"] == "Succeeded"
    assert "pretrain/2" not in world.tries


def test_run_with_another_configuration_is_replaced_without_using_a_retry() -> None:
    world = interrupted()
    # As after an upgrade to a version that renders another configuration.
    job = world.cluster.stored(world.key).objects["Job", world.job["metadata"]["name"]]
    job["metadata"]["annotations"]["dapt.dev/config-digest"] = "sha256:of-another-version"
    world.settle()
    assert world.tries[-2:] == ["pretrain/1", "pretrain/2"]
    world.live()
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_result_of_another_configuration_does_not_count() -> None:
    world = interrupted("publish")
    world.cluster.run_pods(world.key, healthy)  # it ends while no operator runs
    world.edit(output={"destination": "file:///out/other"})
    world.live()
    assert world.status["output"]["destination"] == "file:///out/other"


def test_run_that_cannot_start_is_replaced_after_an_edit_that_it_does_not_have() -> None:
    world = interrupted()
    world.edit(resources={"cpu": "3"})
    world.cluster.run_pods(world.key, lambda stage: Stays(pending_reason=NODES))
    world.settle()
    assert world.tries[-2:] == ["pretrain/1", "pretrain/2"]
    assert record(world)["generation"] == 2
    world.cluster.run_pods(world.key, lambda stage: Stays(pending_reason=NODES))
    world.settle()
    assert world.tries[-1] == "pretrain/2"


def test_run_whose_image_was_corrected_meanwhile_is_replaced() -> None:
    world = interrupted()
    world.offer(trainerImage="registry.example/dapt-trainer:1.0.1")
    world.cluster.run_pods(world.key, lambda stage: Stays(waiting=PULL))
    world.settle()
    assert world.tries[-2:] == ["pretrain/1", "pretrain/2"]
    assert world.condition("Stalled")[0] == "False"


def test_failure_of_what_was_corrected_meanwhile_is_not_final() -> None:
    world = interrupted("prepare")
    world.edit(stageResources={"prepare": {"memory": "3Gi"}})
    world.end("prepare", BAD_INPUT)
    world.settle()
    assert world.tries[1:] == ["prepare/1", "prepare/2"]


def test_failure_without_an_edit_is_final() -> None:
    world = interrupted("prepare")
    world.end("prepare", BAD_INPUT)
    world.settle()
    assert world.tries[1:] == ["prepare/1"]
    assert world.condition("Stalled")[1] == "BadInput"


def test_run_that_no_watch_has_reported_yet_is_not_taken_for_the_edited_one() -> None:
    world = interrupted()
    name = world.job["metadata"]["name"]
    world.cluster.hide(world.key, "Job", name)
    world.edit(resources={"cpu": "3"})
    world.settle()
    assert [job["metadata"]["name"] for job in world.cluster.live_jobs(world.key)] == [name]
    assert record(world)["generation"] == 1


def test_run_that_no_watch_has_reported_yet_is_found_by_its_name() -> None:
    world = interrupted()
    world.cluster.hide(world.key, "Job", world.job["metadata"]["name"])
    world.settle()
    assert "pretrain/2" not in world.tries
    assert world.running == "pretrain"
