"""The one rule by which a running pretraining is stopped for forgetting.

The trainer applies it at each checkpoint, so that no accelerator waits for an operator that is down; the operator
applies the same function to the same readings, so that the two always agree.

Re-warming lifts the old loss, it stays up while the rate is high, and decay takes a third to two thirds of the rise
off again; an interpolation with the base model halves the rest (docs/decisions/0011). So a reading a little over the
limit means little: a run is stopped when `patience` readings in a row are over twice the limit and the last of them is
not falling, or at once at `hard_stop_factor` times the limit, or when a reading is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from dapt_contract.base import Contract

PATIENCE_FACTOR = 2.0
"""Readings over so many times the limit count for `patience`; the limit itself judges what the run ends with."""
FALLING_FRACTION = 0.005
"""A reading falls when it is below the one before by more than this share of it."""


class StopVerdict(StrEnum):
    """What the stop rule says of a run so far."""

    CONTINUE = "Continue"
    FORGETTING_LIMIT = "ForgettingLimit"
    DIVERGED = "Diverged"


class StopRule(Contract):
    """The numbers of the rule."""

    max_increase_fraction: float
    """Allowed general perplexity over the base model's, minus 1."""
    patience: int
    """Readings in a row over twice the limit, the last not falling, before the run is stopped."""
    hard_stop_factor: float
    """This many times the limit stops the run at once."""
    enforce_limit: bool = True
    """False under `onBreach: Warn`: then only divergence stops a run."""


class StopDecision(Contract):
    """A verdict with its reason in one sentence."""

    verdict: StopVerdict
    message: str = ""


def judge_readings(rule: StopRule, base_perplexity: float, perplexities: Sequence[float]) -> StopDecision:
    """Judge the general perplexities measured so far, oldest first.

    Args:
        rule: the numbers of the rule.
        base_perplexity: the frozen base model's general perplexity on the same text.
        perplexities: one reading a checkpoint.
    """
    if not perplexities:
        return StopDecision(verdict=StopVerdict.CONTINUE)
    latest = perplexities[-1]
    if not math.isfinite(latest):
        return StopDecision(
            verdict=StopVerdict.DIVERGED,
            message=f"general perplexity is {latest} at reading {len(perplexities)}",
        )
    increases = [value / base_perplexity - 1.0 for value in perplexities]
    if not rule.enforce_limit:
        return StopDecision(verdict=StopVerdict.CONTINUE)
    hard = rule.max_increase_fraction * rule.hard_stop_factor
    if increases[-1] > hard:
        return StopDecision(
            verdict=StopVerdict.FORGETTING_LIMIT,
            message=(
                f"general perplexity is {increases[-1]:+.1%} over the base model's, past the hard stop of {hard:+.1%} "
                f"({rule.hard_stop_factor:g} times the limit)"
            ),
        )
    tail = increases[-rule.patience :]
    hopeless = rule.max_increase_fraction * PATIENCE_FACTOR
    over = len(tail) == rule.patience and all(value > hopeless for value in tail)
    falling = len(perplexities) > 1 and latest < perplexities[-2] * (1.0 - FALLING_FRACTION)
    if over and not falling:
        return StopDecision(
            verdict=StopVerdict.FORGETTING_LIMIT,
            message=(
                f"general perplexity is {increases[-1]:+.1%} over the base model's, above {hopeless:+.1%}, "
                f"twice the limit, at {rule.patience} checkpoints in a row and not falling"
            ),
        )
    return StopDecision(verdict=StopVerdict.CONTINUE)
