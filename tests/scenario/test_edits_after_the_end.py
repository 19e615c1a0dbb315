"""An edit after the end is done nothing about; the condition says so, and where the spec differs from what was run."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_operator.api.v1alpha1.conditions import FINISHED, READY
from support.worlds import World

DONE = "and nothing is done about it: create a DomainAdaptation of another name to run it"


def messages(world: World) -> dict[str, str]:
    return {condition["type"]: condition["message"] for condition in world.status["conditions"]}


@pytest.fixture
def ended() -> World:
    world = World()
    world.live()
    return world


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        ({"gates": {"maxGeneralPerplexityIncrease": 0.9}}, "gates"),
        ({"seed": 99}, "seed"),
        ({"selection": {"pin": "a1-s10"}, "evaluation": {"when": "candidates"}}, "evaluation, selection"),
        ({"finetuning": None}, "finetuning"),
        ({"output": {"destination": "s3://elsewhere/x"}}, "output"),
    ],
    ids=str,
)
def test_the_blocks_that_differ_are_named(ended: World, edit: dict[str, Any], where: str) -> None:
    before = messages(ended)
    ended.edit(**edit)
    ended.settle()
    after = messages(ended)
    assert after[FINISHED] == f"{before[FINISHED]}; the spec was changed since in {where} {DONE}"
    assert after[READY] == before[READY]
    assert ended.status["phase"] == "Published"
    assert ended.reconcile().is_empty


def test_an_edit_that_is_taken_back_is_forgotten(ended: World) -> None:
    before = messages(ended)
    ended.edit(seed=99)
    ended.settle()
    ended.edit(seed=98)
    ended.settle()
    assert messages(ended)[FINISHED].count("the spec was changed since in seed") == 1
    ended.edit(seed=17)
    ended.settle()
    assert messages(ended) == before


@pytest.mark.parametrize(
    "edit", [{"suspend": True}, {"limits": {"gpuHours": 1}}, {"cleanup": {"afterSeconds": 10**7}}], ids=str
)
def test_what_changes_nothing_about_the_result_is_not_named(ended: World, edit: dict[str, Any]) -> None:
    before = messages(ended)
    ended.edit(**edit)
    ended.settle()
    assert messages(ended) == before
    assert ended.status["observedGeneration"] == 2
