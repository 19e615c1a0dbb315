"""What a run is named by: its settings, the base, our code, and what dapt's own code gives: rows, rates, measures.

dapt's code is named by its results where they can be had without a run, so that a change of words there does not throw
away what was computed; our own code by its syntax.
"""

from __future__ import annotations

from typing import Any

from dapt_trainer.data.packing.mixture import Mixture
from science.blends import recipe_digest
from science.digests import code_digest, digest_of
from science.model import BATCH_SEQUENCES, Rate, rates_of
from science.penalties import PENALTY_CODE
from science.settings import Adaptation
from science.world import World

RUN_CODE = ("science.model", "science.adapt", "science.losses")
_orders: dict[tuple[Any, ...], str] = {}
_rates: dict[tuple[Rate, int], list[float]] = {}


def key_of(world: World, adaptation: Adaptation) -> str:
    """Names an adaptation."""
    parts: list[Any] = [
        code_digest(*RUN_CODE),
        adaptation,
        *base_parts(world),
        order_digest(world, adaptation.domain, adaptation.replay, adaptation.steps, adaptation.seed),
        rates(adaptation.rate, adaptation.steps),
    ]
    if adaptation.penalty is not None:
        parts.append(code_digest(*PENALTY_CODE))
    if adaptation.shares or adaptation.averaged > 1:
        parts.append(recipe_digest(world))
    return digest_of(*parts)


def base_parts(world: World) -> list[Any]:
    """What every run depends on: the base, the data, the measures and torch."""
    import torch

    readings = {name: losses.rounded() for name, losses in world.readings.items()}
    return [world.base_digest, world.bed.digests, readings, torch.__version__]


def order_digest(world: World, domain: str, replay: float, steps: int, seed: int) -> str:
    """Names the rows that a run reads."""
    known = (*world.bed.digests.values(), domain, replay, steps, seed)
    if known not in _orders:
        shards = [world.domain(domain).shard, world.bed.sides["general"].shard]
        mixture = Mixture.of_shards(
            shards, seed=seed, replay_fraction=replay, global_batch_size=BATCH_SEQUENCES
        )
        _orders[known] = digest_of(*(repr(mixture.rows(step)) for step in range(steps)))
    return _orders[known]


def rates(rate: Rate, steps: int) -> list[float]:
    """The learning rate of every step."""
    known = (rate, steps)
    if known not in _rates:
        _rates[known] = rates_of(rate, steps)
    return _rates[known]
