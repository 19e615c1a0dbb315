"""The operator is killed before or after any of its writes, and the end is the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from builders import healthy
from dapt_contract.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.cluster.memory import Ends, OperatorKilledError, Stays
from worlds import World


def troubled(stage: StageFile) -> Ends | Stays:
    """A life with a retry in the middle."""
    if stage.kind == "pretrain" and stage.run.try_number == 1:
        return Ends(75, message="a rank is lost", cause=Cause.INFRASTRUCTURE)
    return healthy(stage)


def live_through(world: World, crash_at: int | None, *, after: bool) -> int:
    """A whole life with one crash and one suspension; how many writes it took."""
    world.cluster.crash_at, world.cluster.crash_after = crash_at, after
    suspended = False
    for _ in range(300):
        try:
            if not world.visit().is_empty:
                continue
        except OperatorKilledError:
            continue
        if world.running == "finetune" and not suspended:
            suspended = True
            world.cluster.advance(30)
            world.edit(suspend=True)
            continue
        if suspended and world.status["phase"] == "Suspended" and world.running is None:
            world.cluster.advance(30)
            if world.visit().is_empty:
                world.edit(suspend=False)
            continue
        if world.cluster.run_pods(world.key, troubled):
            continue
        if world.status["phase"] == "Published":
            return len(world.cluster.verbs)
        world.cluster.advance(15)
    raise AssertionError(f"no end with a crash at {crash_at}")


def ending(world: World) -> dict[str, Any]:
    """What must be the same: all but moments."""
    status = world.status
    kept = {
        name: status[name] for name in ("phase", "selected", "output", "resolved", "frozen", "candidates")
    }
    kept["stages"] = [(one["name"], one["state"], one["try"]) for one in status["stages"]]
    kept["conditions"] = [(c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"]]
    return json.loads(json.dumps(kept))  # type: ignore[no-any-return]


def unbroken() -> tuple[dict[str, Any], int, list[str]]:
    world = World()
    writes = live_through(world, None, after=False)
    return ending(world), writes, world.tries


EXPECTED, WRITES, TRIES = unbroken()


def test_the_unbroken_life_has_a_retry_and_a_suspension() -> None:
    assert TRIES == [
        "prepare/1", "baseline/1", "pretrain/1", "pretrain/2", "evaluate/1", "finetune/1", "finetune/2", "verify/1",
        "publish/1",
    ]  # fmt: skip


@pytest.mark.parametrize("crash_at", range(-1, WRITES))
def test_a_crash_at_any_write_ends_the_same(crash_at: int) -> None:
    """After each write, which is before the next; -1 is before the first."""
    world = World()
    live_through(world, max(crash_at, 0), after=crash_at >= 0)
    assert ending(world) == EXPECTED
    assert sorted(world.tries) == sorted(TRIES)
    assert len(set(world.cluster.created)) == len(world.cluster.created)
