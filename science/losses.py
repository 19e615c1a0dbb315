"""Losses on the held-out halves, of a model and of what is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from science.bed import END_OF_TEXT_ID, SideData

if TYPE_CHECKING:
    pass


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
    from dapt_trainer.evaluation.perplexity import HeldOutScoring, held_out_perplexity

    context = domain.shard.tokens.shape[1]

    def loss(side: SideData, half: str) -> float:
        return held_out_perplexity(
            model, side.held_out[half], HeldOutScoring(context), end_of_text_id=END_OF_TEXT_ID
        ).loss_nats

    return Losses(loss(domain, "a"), loss(domain, "b"), loss(general, "a"), loss(general, "b"))
