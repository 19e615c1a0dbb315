"""Tests pods with a container that goes on when the trainer has ended: the run counts, then its object is deleted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World


def lingering(stage: StageFile) -> Ends | Stays:
    outcome = healthy(stage)
    assert isinstance(outcome, Ends)
    return replace(outcome, lingers=True)


@pytest.mark.parametrize("launcher", ["IndexedJob", "JobSet"])
def test_adaptation_with_endless_sidecars_is_published_and_leaves_no_pod(launcher: str) -> None:
    world = World({}, {"launcher": launcher})
    world.live(lingering)
    assert world.status["phase"] == "Published"
    assert {number for _, number in (one.split("/") for one in world.tries)} == {"1"}
    kind = "JobSet" if launcher == "JobSet" else "Job"
    assert (world.cluster.objects(world.key, kind), world.cluster.objects(world.key, "Pod")) == ([], [])


def test_run_with_endless_sidecars_is_deleted_once_its_end_is_stored() -> None:
    world = World()
    world.live_until("prepare")
    name = world.job["metadata"]["name"]
    assert world.cluster.run_pods(world.key, lingering)
    first = world.reconcile()
    assert first.status is not None
    assert (first.delete, world.running) == ((), "baseline"), "the next stage does not wait for a sidecar"
    assert world.reconcile().delete == (), "native sidecars get some seconds to end by themselves"
    world.cluster.advance(5)
    assert [(one.kind, one.name, one.grace_seconds) for one in world.reconcile().delete] == [
        ("ConfigMap", name, None),
        ("Job", name, None),
        ("Pod", f"{name}-0", 10),
    ]
    assert world.reconcile().delete == ()


def test_nothing_is_deleted_before_the_end_of_the_run_is_stored() -> None:
    """The operator was down while the run ended."""
    world = World()
    world.live_until("prepare")
    assert world.cluster.run_pods(world.key, lingering)
    world.cluster.advance(60)
    first = world.reconcile()
    assert (first.status is None, first.delete) == (False, ())
    assert [one.kind for one in world.reconcile().delete] == ["ConfigMap", "Job", "Pod"]


def test_last_stage_is_cleared_of_its_sidecar_after_the_end() -> None:
    world = World()
    world.live_until("publish")
    assert world.cluster.run_pods(world.key, lingering)
    world.settle()
    assert world.status["phase"] == "Published"
    assert world.plans[-1].requeue_after == 5.0
    world.cluster.advance(5)
    assert [one.kind for one in world.reconcile().delete] == ["ConfigMap", "Job", "Pod"]
    assert (world.reconcile().delete, world.plans[-1].requeue_after) == ((), None)


def test_trainer_that_fails_next_to_an_endless_sidecar_is_tried_again() -> None:
    world = World({"cleanup": {"finishedRuns": "Retain"}})
    world.live_until("pretrain")
    world.end("pretrain", Ends(75, message="lost a peer", cause=Cause.INFRASTRUCTURE, lingers=True))
    world.live()
    assert world.status["phase"] == "Published"
    assert world.tries.count("pretrain/2") == 1
    record = next(one for one in world.status["ledger"]["runs"] if one["stage"] == "pretrain")
    assert record["failures"] == {"infrastructure": 1}
    assert world.cluster.objects(world.key, "Pod") != []
    jobs = [job["metadata"]["labels"] for job in world.cluster.objects(world.key, "Job")]
    assert [one["dapt.dev/try"] for one in jobs if one["dapt.dev/stage"] == "pretrain"] == ["2"]
