"""Losses on the held-out halves, of a model and of what is made of it."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from science.bed import END_OF_TEXT_ID, SideData

if TYPE_CHECKING:
    from science.run import Adaptation, World

HALF_NAMES = ("domain_a", "domain_b", "general_a", "general_b")


@dataclass(frozen=True)
class Losses:
    """Nats a token by side and half, by dapt's own perplexity."""

    domain_a: float
    domain_b: float
    general_a: float
    general_b: float

    def rounded(self) -> list[float]:
        """To the fourth digit, where machines and thread counts agree."""
        return [round(getattr(self, name), 4) for name in HALF_NAMES]


def measure(model: Any, domain: SideData, general: SideData) -> Losses:
    """All four halves; the context is that of training."""
    from dapt_trainer.evaluation.perplexity import held_out_perplexity

    context = domain.shard.tokens.shape[1]

    def loss(side: SideData, half: str) -> float:
        return held_out_perplexity(
            model, side.held_out[half], context_length_tokens=context, end_of_text_id=END_OF_TEXT_ID
        ).loss_nats

    return Losses(loss(domain, "a"), loss(domain, "b"), loss(general, "a"), loss(general, "b"))


def blends(
    world: World,
    model: Any,
    adaptation: Adaptation,
    last: list[dict[str, Any]],
    domain: SideData,
    general: SideData,
) -> list[dict[str, Any]]:
    """Interpolations of the last checkpoint with the base, and the mean of the last ones, by dapt's own recipes."""
    import torch

    from dapt_contract.stages.common import Member, ModelReference
    from dapt_trainer.training.recipes import follow
    from science.run import LOADING

    measured = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with LOADING:
            world.new_model().save_pretrained(work / "model")
            model.save_pretrained(work / "last")
            for number, state in enumerate(last):
                other = world.new_model()
                other.load_state_dict(state)
                other.save_pretrained(work / f"earlier-{number}")
        recipes = {
            f"i{share:g}": ModelReference(weights="last", interpolation=share) for share in adaptation.shares
        }
        if last:
            members = tuple(Member(weights=f"earlier-{number}") for number in range(len(last) - 1))
            recipes[f"avg{len(last)}"] = ModelReference(weights="last", averaged_with=members)
        for name, recipe in recipes.items():
            with LOADING:
                made = follow(work, recipe, dtype=torch.float32).eval()
            measured.append({"name": name, **asdict(measure(made, domain, general))})
    return measured
