"""One adaptation of the base model: what is trained and what is measured."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from science.blends import blends
from science.losses import measure
from science.model import Training
from science.penalties import make_penalty
from science.settings import Adaptation
from science.world import World


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
