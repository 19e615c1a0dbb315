"""Defines the measures of a model: perplexities on held-out text, and scores compared with the base model's."""

import math
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field

from dapt_contract.base import LARGEST_COUNT, Amount, Contract, Count, DigestText, Loss, PositiveCount, Row

Side = Literal["domain", "general"]
ROW_ERROR_STEPS: Final = 10_000
"""Steps of a nat in which rows of checkpoints and blends hold standard errors: a message has place for no more."""
_LARGEST_ROW_ERROR: Final = 9_999
_ROUNDING = 1e-6


def _within(least: float, most: float) -> AfterValidator:
    """Return a check of finite numbers: a mean of many may be a rounding error past its bounds."""

    def check(value: float) -> float:
        if math.isfinite(value) and not least - _ROUNDING <= value <= most + _ROUNDING:
            raise ValueError(f"must be between {least:g} and {most:g}")
        return value

    return AfterValidator(check)


Share = Annotated[float, _within(0.0, 1.0)]
ShareDifference = Annotated[float, _within(-1.0, 1.0)]
Spread = Annotated[float, _within(0.0, 2.0)]
"""Standard error of a share, or of a difference of two; of two items that disagree it is 1."""


RowError = Annotated[int, Field(ge=0, le=_LARGEST_ROW_ERROR)]
"""Standard error of a loss' difference from the base model's, in 0.0001 nats a token, rounded up."""


class Perplexity(Row):
    """Holds the sum of the negative log-likelihood over held-out text, with its two denominators.

    perplexity = exp(nll_nats / tokens); bits per byte = nll_nats / (ln 2 x bytes) (Gao et al. 2020, The Pile, 3.1).
    """

    nll_nats: Loss
    """Total over all scored tokens."""
    tokens: PositiveCount
    """Tokens of the same text in the BASE model's tokenizer, so that values compare when the tokenizer is extended."""
    bytes: PositiveCount
    """UTF-8 bytes of the same text."""
    difference_standard_error_nats: Amount | None = None
    """Paired standard error, by document, of `loss_nats` minus the base model's. None for the base model itself, and
    where the documents' losses were not paired with the base model's."""

    ABSENT_IF_NONE: ClassVar[frozenset[str]] = frozenset({"difference_standard_error_nats"})

    @property
    def loss_nats(self) -> float:
        """Return the mean negative log-likelihood of a base-tokenizer token."""
        return self.nll_nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Return exp of the mean; infinity when that overflows."""
        return math.exp(self.loss_nats) if self.loss_nats < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Return the loss in bits a byte, which compares any two models."""
        return self.nll_nats / (math.log(2) * self.bytes)

    def __add__(self, other: "Perplexity") -> "Perplexity":
        """Return the perplexity of both texts together."""
        return Perplexity(
            nll_nats=self.nll_nats + other.nll_nats,
            # Two counts that a pod may report, and that no text has: their sum must not raise.
            tokens=min(LARGEST_COUNT, self.tokens + other.tokens),
            bytes=min(LARGEST_COUNT, self.bytes + other.bytes),
            difference_standard_error_nats=self._error_with(other),
        )

    @property
    def row_error(self) -> int | None:
        """Return the standard error as a row holds it; None without one. The largest that it holds is 1 nat."""
        error = self.difference_standard_error_nats
        return None if error is None else min(_LARGEST_ROW_ERROR, math.ceil(ROW_ERROR_STEPS * error))

    def _error_with(self, other: "Perplexity") -> float | None:
        """Return the error of both texts together: they are strata, each with its share of the tokens."""
        own, of_other = self.difference_standard_error_nats, other.difference_standard_error_nats
        if own is None or of_other is None:
            return None
        share = self.tokens / (self.tokens + other.tokens)
        return math.hypot(share * own, (1.0 - share) * of_other)


def error_of_row(steps: int | None) -> float | None:
    """Return the standard error of a row in nats a token."""
    return None if steps is None else steps / ROW_ERROR_STEPS


class SidePerplexity(Contract):
    """Holds the perplexities of one side's two held-out halves: A ranks candidates, B decides the strict gates."""

    a: Perplexity
    b: Perplexity

    @property
    def both(self) -> Perplexity:
        """Return the perplexity of the side's whole held-out text."""
        return self.a + self.b


class Score(Row):
    """Holds the score of a task or probe set, 0 to 1, higher is better, and its difference from the base model's.

    The numbers of a model whose weights are broken may be infinite or no number; a gate fails such a model.
    """

    name: str = Field(max_length=40)
    side: Side
    kind: Literal["task", "probe"] = "task"
    items: Count
    score: Share
    standard_error: Spread
    difference: ShareDifference | None = None
    """Score minus the base model's on the same items; None for the base model itself."""
    difference_standard_error: Spread | None = None
    """Paired standard error: standard deviation of the items' differences over the root of their number."""
    score_a: Share | None = None
    """Score on half A of the items, which ranks candidates; only with at least 200 items."""
    difference_b: ShareDifference | None = None
    """Difference on half B, which the strict gates read; only with at least 200 items."""
    difference_b_standard_error: Spread | None = None


class Measure(Contract):
    """Holds everything measured on one model, identified by the digest of its weights."""

    digest: DigestText
    """SHA-256 of the weights that were scored."""
    domain: SidePerplexity
    general: SidePerplexity
    scores: tuple[Score, ...] = Field(default=(), max_length=20)
    """At most 8 tasks and 2 probe sets a side."""

    def of_side(self, side: Side) -> tuple[Score, ...]:
        """Return the scores of one side's tasks and probe sets."""
        return tuple(score for score in self.scores if score.side == side)
