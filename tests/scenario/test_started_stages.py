"""Tests that what has started continues although the estimate would refuse it now, as after an upgrade."""

from __future__ import annotations

import pytest

from dapt_operator.testing.objects import Ends
from support.worlds import World

SPEC: dict[str, object] = {"pretraining": {"method": {"lora": None, "full": {}}, "microBatchSize": None}}
FITS = {"accelerator": {"memoryGiB": 4.0}}
FILLED = {"accelerator": {"memoryGiB": 3.6}}
"""The model takes 3.5 GiB: the whole card holds it, and a plan leaves 8 % of it free."""
TOO_SMALL = {"accelerator": {"memoryGiB": 1.0}}


def refused(world: World) -> bool:
    status, reason, _ = world.condition("Stalled")
    return (status, reason) == ("True", "NotEnoughMemory")


def test_new_adaptation_that_fills_the_card_is_refused() -> None:
    world = World(SPEC, FILLED)
    world.live()
    assert refused(world)


@pytest.mark.parametrize("offered", [FILLED, TOO_SMALL], ids=["filled", "too small"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_live_training_is_not_ended_by_another_estimate(kind: str, offered: dict[str, object]) -> None:
    world = World(SPEC, FITS)
    world.live_until(kind)
    world.offer(**offered)
    world.settle()
    assert (world.running, world.tries[-1]) == (kind, f"{kind}/1")


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "verify"])
def test_adaptation_that_fills_the_card_ends_well(kind: str) -> None:
    world = World(SPEC, FITS)
    world.live_until(kind)
    world.offer(**FILLED)
    world.live()
    assert world.status["phase"] == "Published"
    assert {run.rpartition("/")[2] for run in world.tries} == {"1"}


@pytest.mark.parametrize(("offered", "is_refused"), [(FILLED, False), (TOO_SMALL, True)])
def test_retry_of_a_started_training_fits_into_the_whole_card(
    offered: dict[str, object], is_refused: bool
) -> None:
    world = World(SPEC, FITS)
    world.live_until("pretrain")
    world.offer(**offered)
    world.end("pretrain", Ends(143, disrupted=True, message="evicted by the node"))
    world.live()
    assert refused(world) == is_refused
    assert ("pretrain/2" in world.tries) != is_refused
