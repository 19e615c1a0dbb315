"""One adaptation of the base model: what is trained and what is measured."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from science import bed
from science.base import BaseSettings, Bed, base_digest
from science.bed import SideData
from science.losses import Losses, measure
from science.model import make_model

SMALL_DOMAIN_TOKENS = 40_000
_DRAWING_SEED = 1
LOADING = threading.Lock()
"""transformers changes torch's initializers while it makes a model: one at a time."""


@dataclass(frozen=True)
class World:
    """What every run starts from."""

    settings: BaseSettings
    bed: Bed
    base: dict[str, Any]
    """Weights of the base model."""
    base_digest: str
    readings: dict[str, Losses]
    """The base model's losses, by domain."""

    def model(self) -> Any:
        """A copy of the base model."""
        with LOADING:
            return self.new_model()

    def new_model(self) -> Any:
        """The same, for a caller that holds `LOADING`."""
        model = make_model(self.settings.shape, self.settings.bed, self.settings.seed)
        model.load_state_dict(self.base)
        return model

    def domain(self, name: str) -> SideData:
        """A domain's rows, and the held-out text of the true one."""
        side = self.bed.sides["weak" if name == "weak" else "strong"]
        if name == "shuffled":
            return SideData(bed.shuffled(side.shard, _DRAWING_SEED), side.held_out)
        if name == "small":
            return SideData(bed.some_rows(side.shard, SMALL_DOMAIN_TOKENS, _DRAWING_SEED), side.held_out)
        return side


def open_world(settings: BaseSettings, made: Bed, base: dict[str, Any]) -> World:
    """Measure the base model; the measures are cheap and name the code that measures."""
    world = World(settings, made, base, base_digest(settings, made), {})
    model = world.model()
    for name in ("strong", "weak"):
        world.readings[name] = measure(model, world.domain(name), made.sides["general"])
    return world
