"""Refuses a base model that predicts text no better than by chance: all other models are measured against it."""

from __future__ import annotations

import math

from dapt_contract.measure import Measure
from dapt_trainer.errors import InputError

CHANCE_FRACTION = 0.95
"""Share of the vocabulary size from which a perplexity is that of guessing; an untrained model is at 1 or above."""


def check_base(measure: Measure, vocabulary_size: int) -> None:
    """Refuse a measure that no trained model has.

    One side alone may be as hard as chance for a good model (a language that it never saw), both are not.

    Args:
        measure: of the base model.
        vocabulary_size: number of tokens that it chooses from: the perplexity of guessing.

    Raises:
        InputError: a perplexity is not a number, or both are near the vocabulary size.
    """
    values = {"domain": measure.domain.both, "general": measure.general.both}
    broken = [side for side, value in values.items() if not math.isfinite(value.loss_nats)]
    if broken:
        raise InputError(
            f"spec.model.source: the base model's perplexity on held-out {' and '.join(broken)} text is not a number: "
            "its weights or its configuration are damaged; use another checkpoint of the model"
        )
    if all(value.perplexity >= CHANCE_FRACTION * vocabulary_size for value in values.values()):
        raise InputError(
            f"spec.model.source: the base model has a perplexity of {values['domain'].perplexity:,.0f} on domain and "
            f"{values['general'].perplexity:,.0f} on general text, as if it guessed among its {vocabulary_size:,} "
            "tokens: it is not trained, or its configuration or tokenizer is another model's; use a trained model with "
            "its own files"
        )
