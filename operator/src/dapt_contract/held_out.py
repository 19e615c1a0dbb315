"""How much text is held out where the manifest does not say: what every checkpoint is read on must not hold it up.

A reading is one forward pass over both sides' text; a training step is a forward pass and a backward pass of twice its
cost. So readings take checkpoints x 2 x tokens / 3 of what the training's own tokens take.
"""

from __future__ import annotations

READING_SHARE = 0.02
"""Of the training's time, for all readings together. With the saves a run stays below 3 %."""
MOST_TOKENS = 1_000_000
"""Of a side. A token's loss spreads by some 3 nats, so the mean of so many by 0.003; more only costs time."""
FEWEST_TOKENS = 2_000
"""Of a side, however short the training: on less a reading says little."""


def most_tokens(training_tokens: float, checkpoints: int) -> int:
    """Largest number of tokens to hold out on a side.

    Args:
        training_tokens: of the whole pretraining, replay included.
        checkpoints: readings of it.
    """
    affordable = READING_SHARE * 3.0 * training_tokens / (2 * checkpoints)
    return max(FEWEST_TOKENS, min(MOST_TOKENS, round(affordable)))
