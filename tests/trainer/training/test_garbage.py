"""Tests when Python collects garbage while a model is trained."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from dapt_trainer.training.garbage import STEPS_BETWEEN_COLLECTIONS, StepGarbage


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    """Other tests' process may have frozen its imports."""
    gc.unfreeze()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collections that were asked for, which take a second in a process full of libraries."""
    asked: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda generation=2: asked.append(generation))
    return asked


def test_nothing_is_collected_within_a_step(collections: list[int]) -> None:
    with StepGarbage() as garbage:
        assert gc.isenabled()  # while everything is loaded
        garbage.after_step()
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
        assert collections == [2]
        for _ in range(STEPS_BETWEEN_COLLECTIONS - 1):
            garbage.after_step()
        assert collections == [2]
        garbage.after_step()
        assert collections == [2, 2]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_collection_is_as_before_after_an_error(collections: list[int]) -> None:
    def diverge() -> None:
        with StepGarbage() as garbage:
            garbage.after_step()
            raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        diverge()
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, 0)


def test_training_without_a_step_changes_nothing(collections: list[int]) -> None:
    gc.disable()
    with StepGarbage():
        pass
    assert not gc.isenabled()
    assert collections == []
