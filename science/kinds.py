"""Kinds of runs: what names one, and what does it. A new kind is one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from science import adapt, chain, names, rows
from science.chain import Chain
from science.rows import NewRows
from science.settings import Adaptation
from science.world import World

_KINDS: dict[type, tuple[Callable[[World, Any], str], Callable[[World, Any], dict[str, Any]]]] = {
    Adaptation: (names.key_of, adapt.adapt),
    Chain: (chain.key_of, chain.follow),
    NewRows: (rows.key_of, rows.grow_and_adapt),
}


def key(world: World, settings: Any) -> str:
    """The name that its record is kept under."""
    return _KINDS[type(settings)][0](world, settings)


def cost(settings: Any) -> tuple[int, int]:
    """(steps, measures) of a run, for an estimate of its time; a chain is taken with one rollback."""
    if isinstance(settings, Adaptation):
        return settings.steps, settings.readings + len(settings.shares) + (settings.averaged > 1)
    if isinstance(settings, Chain):
        return 2 * settings.steps, 2 * chain.READINGS
    return settings.steps, len(rows.READING_STEPS)


def perform(world: World, settings: Any) -> dict[str, Any]:
    """Do it; a record of plain values with its `settings`."""
    return _KINDS[type(settings)][1](world, settings)
