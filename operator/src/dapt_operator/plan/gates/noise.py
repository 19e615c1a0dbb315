"""Says what chance explains of a difference in perplexity, by its standard error over documents.

Everything is in nats a token, where a difference of losses is symmetric and its error nearly normal; limits and
messages are in shares of the base model's perplexity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from dapt_contract.measure import Side, SidePerplexity
from dapt_operator.number_format import count

USUAL_CONFIDENCE: Final = 0.95
"""With which a difference is distinguished from chance where `gates.confidence` asks for no other."""
_MOST_TOKENS: Final = 1e12
"""Beyond it the number of tokens that would settle a difference is not worth telling: there is none to settle."""


@dataclass(frozen=True)
class Margin:
    """By how much a loss on half B keeps a limit, with the part of it that chance explains."""

    nats: float
    """Below 0 where the limit is not kept."""
    noise_nats: float
    """Largest deviation that chance explains, to one side, with the confidence that is asked for."""
    side: Side
    held_out_tokens: int
    """Of the side, both halves."""

    @property
    def is_noise(self) -> bool:
        """Whether chance alone may decide on which side of the limit the loss is."""
        return abs(self.nats) < self.noise_nats

    @property
    def is_kept(self) -> bool:
        """Whether the limit is kept with the confidence that is asked for."""
        return self.nats >= self.noise_nats

    @property
    def tokens_needed(self) -> float | None:
        """Return the held-out tokens of the side with which chance would explain less than the margin.

        A standard error falls with the root of the number of documents. None where no text would settle it.
        """
        if self.nats == 0.0:
            return None
        needed = self.held_out_tokens * (self.noise_nats / abs(self.nats)) ** 2
        return needed if needed < _MOST_TOKENS else None

    @property
    def remedy(self) -> str:
        """Return how much text would settle it: `about 4.1 M tokens of held-out general text would settle it`."""
        needed = self.tokens_needed
        if needed is None:
            return f"more held-out {self.side} text would hardly settle it"
        return f"about {count(needed)} tokens of held-out {self.side} text would settle it"

    def numbers(self) -> dict[str, float]:
        """Return the numbers for reports."""
        needed = self.tokens_needed
        return {} if needed is None else {"tokensNeeded": needed}


def margin_of(
    side: Side,
    base: SidePerplexity,
    measured: SidePerplexity,
    largest_rise_nats: float,
    confidence: float | None,
) -> Margin | None:
    """Return by how much half B keeps a limit; None where its documents were not paired with the base model's.

    Args:
        side: of the held-out text.
        base: the base model's perplexity.
        measured: the model's.
        largest_rise_nats: of the loss over the base model's; below 0 where it must fall.
        confidence: with which chance is distinguished from a difference, to one side; None: `USUAL_CONFIDENCE`.
    """
    error = measured.b.difference_standard_error_nats
    if error is None:
        return None
    rise = measured.b.loss_nats - base.b.loss_nats
    noise = NormalDist().inv_cdf(USUAL_CONFIDENCE if confidence is None else confidence) * error
    return Margin(largest_rise_nats - rise, noise, side, base.both.tokens)


def error_of_ratio(base: SidePerplexity, measured: SidePerplexity) -> float | None:
    """Return the standard error of half B's perplexity over the base model's; None where it is not known.

    To first order: the ratio times the error of its logarithm.
    """
    error = measured.b.difference_standard_error_nats
    rise = measured.b.loss_nats - base.b.loss_nats
    if error is None or not math.isfinite(rise):
        return None
    return math.exp(min(rise, 700.0)) * error
