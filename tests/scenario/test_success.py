"""A whole life in which all goes well."""

from __future__ import annotations

from worlds import World


def test_every_stage_runs_once_and_in_order() -> None:
    world = World()
    world.live()
    assert [run.run.stage for run in world.runs] == [
        "prepare", "baseline", "pretrain", "evaluate", "finetune", "verify", "publish",
    ]  # fmt: skip
    assert [run.run.fence for run in world.runs] == [1, 2, 3, 4, 5, 6, 7]
    assert world.condition("Finished") == ("True", "Published", "model published to file:///out/model")
    assert world.condition("Ready")[0] == "True"
    assert world.status["phase"] == "Published"
    assert world.status["selected"]["id"] == "a1-s40"
