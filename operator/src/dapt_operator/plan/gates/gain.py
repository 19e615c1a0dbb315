"""Gain of a model over the base model: what candidates are ranked by."""

from __future__ import annotations

import math

from dapt_contract.measure import Measure, Score
from dapt_operator.api.v1alpha1.spec_evaluation import SelectionWeights


def gain(weights: SelectionWeights, base: Measure, measured: Measure, half: str) -> float:
    """w1 x (fall of ln domain perplexity) + w2 x mean over domain tasks of (score - base) / (1 - base).

    Args:
        weights: w1 and w2.
        base: the base model's measure.
        measured: the model's.
        half: `a`, `b` or `both`; tasks without halves count whole on each.

    Probe sets do not count, and a task on which the base model is perfect has nothing left to win. Minus infinity
    when the perplexity is not a number.
    """
    fall = getattr(base.domain, half).loss_nats - getattr(measured.domain, half).loss_nats
    if not math.isfinite(fall):
        return -math.inf
    before = {score.name: score for score in base.scores}
    won = [
        _won(before[score.name], score, half)
        for score in measured.of_side("domain")
        if score.kind == "task" and score.name in before
    ]
    return float(
        weights.domain_perplexity * fall + weights.domain_tasks * (sum(won) / len(won) if won else 0.0)
    )


def _won(base: Score, score: Score, half: str) -> float:
    reference = base.score
    difference = score.score - base.score
    if half == "a" and base.score_a is not None and score.score_a is not None:
        reference, difference = base.score_a, score.score_a - base.score_a
    elif half == "b" and score.difference_b is not None:
        difference = score.difference_b
    return difference / (1.0 - reference) if reference < 1.0 else 0.0
