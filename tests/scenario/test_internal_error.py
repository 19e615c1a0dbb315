"""Tests that what the operator reports of its own errors goes once a reconcile works again."""

from __future__ import annotations

from datetime import UTC, datetime

from dapt_operator.plan.status.internal_error import internal_error_conditions
from support.worlds import World


def fail(world: World) -> None:
    """Store what an operator reports that fails on the adaptation."""
    resource = world.cluster.observe(world.key).resource
    assert resource is not None
    found = internal_error_conditions(resource, "the operator fails", datetime.now(UTC))
    assert found is not None
    status = {**resource["status"], "conditions": list(found)}
    world.cluster.write_status(world.key, status, resource["metadata"]["resourceVersion"])
    assert world.condition("Stalled")[:2] == ("True", "InternalError")


def test_working_adaptation_goes_on_after_an_error_of_the_operator() -> None:
    world = World()
    for _ in range(4):
        world.reconcile()
    fail(world)
    world.reconcile()
    assert world.condition("Stalled")[0] == "False"
    assert world.condition("Reconciling")[0] == "True"
    world.live()
    assert world.status["phase"] == "Published"


def test_published_adaptation_is_ready_again_after_an_error_of_the_operator() -> None:
    world = World()
    world.live()
    before = {type_: world.condition(type_) for type_ in ("Ready", "Reconciling", "Stalled", "Finished")}
    fail(world)
    world.reconcile()
    assert {type_: world.condition(type_) for type_ in before} == before
    assert world.reconcile().is_empty
