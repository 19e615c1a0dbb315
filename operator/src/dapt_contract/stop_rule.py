"""Decides when a running pretraining is stopped for forgetting.

The trainer applies the rule at each checkpoint, so that no accelerator waits for an operator that is down; the operator
applies the same function to the same perplexities, so that the two always agree.

Re-warming the learning rate raises the loss on general text. The loss stays up while the rate is high, the decay of the
rate takes back a third to two thirds of the rise, and an interpolation with the base model halves the rest
(docs/decisions/0011). So a perplexity a little over the limit means little in the middle of a run. A run is stopped
when `patience` perplexities in a row are over twice the limit and the last of them is not falling, at once at
`hard_stop_factor` times the limit, and when a perplexity is not a number.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

from dapt_contract.base import Contract

PATIENCE_FACTOR = 2.0
"""Perplexities over this many times the limit count for `patience`; the limit itself applies to the end of the run."""
FALLING_FRACTION = 0.005
"""A perplexity falls when it is below the one before by more than this share of it."""


class StopVerdict(StrEnum):
    """Names what the stop rule decides about a run."""

    CONTINUE = "Continue"
    FORGETTING_LIMIT = "ForgettingLimit"
    DIVERGED = "Diverged"


class StopRule(Contract):
    """Holds the numbers of the rule."""

    max_increase_fraction: float
    """The limit: allowed general perplexity over the base model's, minus 1."""
    patience: int
    """Perplexities in a row over twice the limit, the last not falling, before the run is stopped."""
    hard_stop_factor: float
    """An increase of this many times the limit stops the run at once."""
    enforce_limit: bool = True
    """False under `onBreach: Warn`: then only divergence stops a run."""


class StopDecision(Contract):
    """Holds a verdict with its reason in one sentence."""

    verdict: StopVerdict
    message: str = ""


def judge_readings(rule: StopRule, base_perplexity: float, perplexities: Sequence[float]) -> StopDecision:
    """Decide by the general perplexities measured so far whether a run continues.

    Args:
        rule: the numbers of the rule.
        base_perplexity: general perplexity of the frozen base model on the same text.
        perplexities: one for each checkpoint, oldest first.
    """
    if not perplexities:
        return StopDecision(verdict=StopVerdict.CONTINUE)
    latest = perplexities[-1]
    if not math.isfinite(latest):
        return StopDecision(
            verdict=StopVerdict.DIVERGED,
            message=f"general perplexity is {latest} at reading {len(perplexities)}",
        )
    # After divergence: no setting lets a run go on whose perplexity is not a number.
    if not rule.enforce_limit:
        return StopDecision(verdict=StopVerdict.CONTINUE)
    increases = [value / base_perplexity - 1.0 for value in perplexities]
    hard_stop = rule.max_increase_fraction * rule.hard_stop_factor
    if increases[-1] > hard_stop:
        return StopDecision(
            verdict=StopVerdict.FORGETTING_LIMIT,
            message=(
                f"general perplexity is {increases[-1]:+.1%} over the base model's, past the hard stop of "
                f"{hard_stop:+.1%} ({rule.hard_stop_factor:g} times the limit)"
            ),
        )
    latest_increases = increases[-rule.patience :]
    threshold = rule.max_increase_fraction * PATIENCE_FACTOR
    is_over = len(latest_increases) == rule.patience and all(value > threshold for value in latest_increases)
    # A run whose learning rate decays usually falls below the limit by itself: never stop one that is falling.
    is_falling = len(perplexities) > 1 and latest < perplexities[-2] * (1.0 - FALLING_FRACTION)
    if is_over and not is_falling:
        return StopDecision(
            verdict=StopVerdict.FORGETTING_LIMIT,
            message=(
                f"general perplexity is {increases[-1]:+.1%} over the base model's, above {threshold:+.1%}, "
                f"twice the limit, at {rule.patience} checkpoints in a row and not falling"
            ),
        )
    return StopDecision(verdict=StopVerdict.CONTINUE)
