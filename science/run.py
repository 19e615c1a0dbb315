"""One adaptation of the base model: what is trained and what is measured."""

from __future__ import annotations

import math
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

from science import bed
from science.base import BaseSettings, Bed, base_digest
from science.bed import SideData
from science.measures import Losses, blends, measure
from science.model import Rate, Training, make_model
from science.penalties import make_penalty

SMALL_DOMAIN_TOKENS = 40_000
_DRAWING_SEED = 1
LOADING = threading.Lock()
"""transformers changes torch's initializers while it makes a model: one at a time."""


@dataclass(frozen=True)
class Penalty:
    """dapt's regularization against forgetting."""

    kind: str
    """`ewc`, `l2sp` or `klToBase`."""
    strength: float
    samples: int = 1000
    """General sequences behind the Fisher information."""


@dataclass(frozen=True)
class Adaptation:
    """Settings of one run; equal settings are the same run in every experiment."""

    domain: str = "strong"
    """`strong`, `weak`, `shuffled` (strong, with the tokens of each row in any order) or `small` (a part of strong)."""
    replay: float = 0.0
    rate: Rate = field(default_factory=Rate)
    steps: int = 300
    readings: int = 1
    """Checkpoints that are measured, evenly over the run."""
    shares: tuple[float, ...] = ()
    """Interpolations with the base that are measured of the last checkpoint."""
    averaged: int = 1
    """Last checkpoints whose mean is measured; 1: none."""
    penalty: Penalty | None = None
    seed: int = 1


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


def make_training(world: World, adaptation: Adaptation, model: Any) -> Training:
    """The training that settings describe, not begun."""
    penalty = make_penalty(world, adaptation.penalty, model) if adaptation.penalty else None
    return Training(
        model,
        [world.domain(adaptation.domain).shard, world.bed.sides["general"].shard],
        rate=adaptation.rate,
        total_steps=adaptation.steps,
        replay_fraction=adaptation.replay,
        seed=adaptation.seed,
        penalty=penalty,
    )


def adapt(world: World, adaptation: Adaptation) -> dict[str, Any]:
    """Train and measure; a record of plain values.

    A run whose loss is no longer a number ends there; its last reading is not a number either.
    """
    model = world.model()
    training = make_training(world, adaptation, model)
    domain, general = world.domain(adaptation.domain), world.bed.sides["general"]
    marks = reading_steps(adaptation)
    readings: list[dict[str, Any]] = []
    last: list[dict[str, Any]] = []
    train_losses = []
    while training.steps_done < adaptation.steps:
        loss = training.step()
        train_losses.append(loss)
        if training.steps_done in marks or not math.isfinite(loss):
            losses = measure(model, domain, general)
            readings.append({"step": training.steps_done, **asdict(losses)})
            if adaptation.averaged > 1:
                state = {name: value.clone() for name, value in model.state_dict().items()}
                last = [*last, state][-adaptation.averaged :]
            if not math.isfinite(loss):
                break
    made = blends(world, model, adaptation, last, domain, general) if adaptation.shares or last else []
    totals = training.mixture.totals(training.steps_done, [domain.shard.used, general.shard.used])
    return {
        "settings": asdict(adaptation),
        "readings": readings,
        "blends": made,
        "first_loss": train_losses[0],
        "replay_fraction": totals.replay_fraction,
        "domain_epochs": totals.epochs_by_source["domain-0"],
        "tokens": totals.tokens,
        "cpu_seconds_a_step": training.cpu_seconds / max(1, training.steps_done),
    }


def reading_steps(adaptation: Adaptation) -> set[int]:
    """Steps after which a checkpoint is measured; the last is one."""
    count = min(adaptation.readings, adaptation.steps)
    return {round(number * adaptation.steps / count) for number in range(1, count + 1)}
