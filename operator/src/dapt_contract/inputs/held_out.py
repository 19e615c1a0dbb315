"""Limits the held-out text where the manifest leaves it open, because every checkpoint is measured on all of it.

Measuring a checkpoint is one forward pass over both sides' text; a training step is a forward pass and a backward pass,
which costs twice as much. So all measurements together take checkpoints x 2 x tokens / 3 of the time that the training
takes for the same number of tokens.
"""

from __future__ import annotations

MEASURING_FRACTION = 0.02
"""Share of the training's time that all measurements may take. With the saves a run stays below 3 %."""
MAX_TOKENS = 1_000_000
"""Upper bound a side. A token's loss spreads by some 3 nats, so the mean of a million by 0.003; more costs time."""
MIN_TOKENS = 2_000
"""Lower bound a side, however short the training: a perplexity on less text is too noisy to compare."""


def max_held_out_tokens(training_tokens: float, checkpoints: int) -> int:
    """Return the largest number of tokens to hold out on a side.

    Args:
        training_tokens: tokens of the whole pretraining, replay included.
        checkpoints: how many of its checkpoints are measured.
    """
    affordable = MEASURING_FRACTION * 3.0 * training_tokens / (2 * checkpoints)
    return max(MIN_TOKENS, min(MAX_TOKENS, round(affordable)))
