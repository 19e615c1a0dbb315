"""Losses on the held-out halves, of a model and of what is made of it."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from science.bed import SideData
from science.digests import digest_of

if TYPE_CHECKING:
    from science.settings import Adaptation
    from science.world import World

from science.losses import measure

_PROBING = threading.Lock()
_probes: dict[str, str] = {}


def blends(
    world: World,
    model: Any,
    adaptation: Adaptation,
    last: list[dict[str, Any]],
    domain: SideData,
    general: SideData,
) -> list[dict[str, Any]]:
    """Interpolations of the last checkpoint with the base, and the mean of the last ones, by dapt's own recipes."""
    measured = []
    for name, made in made_of(world, model.state_dict(), adaptation.shares, last):
        measured.append({"name": name, **asdict(measure(made, domain, general))})
    return measured


def recipe_digest(world: World) -> str:
    """Names what the recipes make of two models, to the fifth digit: their code may change, their result may not."""
    with _PROBING:
        if world.base_digest not in _probes:
            other = {name: value * 1.5 for name, value in world.base.items()}
            sums = [
                f"{sum(float(value.double().abs().sum()) for value in made.state_dict().values()):.5g}"
                for _, made in made_of(world, other, (0.3,), [world.base, other])
            ]
            _probes[world.base_digest] = digest_of(*sums)
        return _probes[world.base_digest]


def made_of(
    world: World, weights: dict[str, Any], shares: tuple[float, ...], last: list[dict[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """(name, model) of each interpolation, and of the mean of `last`, whose newest is `weights`."""
    from dapt_contract.stages.common import Member, ModelReference
    from dapt_trainer.modeling.loading.load_folder import load_model
    from dapt_trainer.modeling.written_models.write_down import write_down
    from science.world import LOADING

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        states = {"model": world.base, "last": weights}
        states |= {f"earlier-{number}": state for number, state in enumerate(last[:-1])}
        with LOADING:
            for name, state in states.items():
                model = world.new_model()
                model.load_state_dict(state)
                model.save_pretrained(work / name)
        recipes = {f"i{share:g}": ModelReference(weights="last", interpolation=share) for share in shares}
        if last:
            members = tuple(Member(weights=f"earlier-{number}") for number in range(len(last) - 1))
            recipes[f"avg{len(last)}"] = ModelReference(weights="last", averaged_with=members)
        for name, recipe in recipes.items():
            with LOADING:
                written = write_down(work, recipe, work / "blends" / name, heartbeat=lambda: None)
                made = load_model(work, written.reference, precision="fp32")
            yield name, made
