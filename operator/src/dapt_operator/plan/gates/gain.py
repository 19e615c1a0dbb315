"""The gain of a model over the base model, by which candidates are ranked."""

from __future__ import annotations

import math

from dapt_contract.measure import Measure, Score
from dapt_operator.api.v1alpha1.spec_evaluation import SelectionWeights
from dapt_operator.plan.gates.perplexity import Half, loss_nats


def gain(weights: SelectionWeights, base: Measure, measured: Measure, half: Half) -> float:
    """Return w1 x (fall of ln domain perplexity) + w2 x mean over domain tasks of (score - base) / (1 - base).

    Args:
        weights: w1 and w2.
        base: the base model's measure.
        measured: the model's.
        half: of the held-out text and items; tasks without halves count whole on each.

    Probe sets do not count, and a task on which the base model is perfect has nothing left to win. A model without any
    score has the part of perplexity alone. Minus infinity when a number of it is not finite, or when some of the base
    model's tasks were not measured: the mean of the others is not that of all.
    """
    fall = loss_nats(base.domain, half) - loss_nats(measured.domain, half)
    base_scores = {score.name: score for score in base.of_side("domain") if score.kind == "task"}
    scores = [score for score in measured.of_side("domain") if score.name in base_scores]
    if measured.scores and len(scores) < len(base_scores):
        return -math.inf
    shares = [_share_won(base_scores[score.name], score, half) for score in scores]
    mean_share = sum(shares) / len(shares) if shares else 0.0
    gained = weights.domain_perplexity * fall + weights.domain_tasks * mean_share
    return gained if math.isfinite(gained) else -math.inf


def gain_by_perplexity(weights: SelectionWeights, base: Measure, measured: Measure, half: Half) -> float:
    """Return the term of perplexity alone, which is known of every candidate.

    With a weight of 0 all candidates would have the same gain: then it is the fall of ln domain perplexity itself.
    """
    fall = loss_nats(base.domain, half) - loss_nats(measured.domain, half)
    if not math.isfinite(fall):
        return -math.inf
    return weights.domain_perplexity * fall if weights.domain_perplexity > 0 else fall


def has_task_gain(weights: SelectionWeights, measured: Measure) -> bool:
    """Whether domain tasks are part of the gain of a model that was measured like this."""
    return weights.domain_tasks > 0 and any(score.kind == "task" for score in measured.of_side("domain"))


def _share_won(base: Score, score: Score, half: Half) -> float:
    """Return how much of what the base model gets wrong the model gets right."""
    reference = base.score
    difference = score.score - base.score
    if half == "a" and base.score_a is not None and score.score_a is not None:
        reference, difference = base.score_a, score.score_a - base.score_a
    elif half == "b" and score.difference_b is not None:
        # The base model's score on half B is not stored: its score on all items stands for it.
        difference = score.difference_b
    return difference / (1.0 - reference) if reference < 1.0 else 0.0
