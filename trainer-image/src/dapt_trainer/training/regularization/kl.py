"""KL to the base model: predictions on general text stay near the frozen base model's (Hinton et al. 2015, Li and
Hoiem 2016).

    penalty = strength * mean over places of KL(base || model) = sum_v p_base(v) (log p_base(v) - log p_model(v))

at temperature 1, over the labelled places of a few general training sequences that are drawn for each step, a function
of the step alone. The batch's own general sequences would not do: without replay there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dapt_trainer.training.regularization.penalty import Predictions, Row, causal_predictions

_PLACES = 1024
"""Places whose fp32 probabilities stand side by side."""


class KlPenalty:
    """With forward and backward passes of its own."""

    before_last_backward = True

    def __init__(
        self,
        strength: float,
        model: Any,
        base_predictions: Callable[[Row], torch.Tensor],
        rows_of_step: Callable[[int], Sequence[Row]],
        places_of_step: Callable[[int], int],
        *,
        backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
        predictions: Predictions = causal_predictions,
        held_bytes: int = 0,
    ) -> None:
        """Make it.

        Args:
            strength: weight of the mean divergence.
            model: the trained one.
            base_predictions: the base model's logits [n, V] on rows, without a graph.
            rows_of_step: this rank's micro-batches of general sequences.
            places_of_step: labelled places of the step over all ranks.
            backward: of a loss whose gradients are summed over ranks.
            predictions: the model's logits [n, V] on rows.
            held_bytes: of the base model.
        """
        self._strength = strength
        self._model = model
        self._base_predictions = base_predictions
        self._rows_of_step = rows_of_step
        self._places_of_step = places_of_step
        self._backward = backward
        self._predictions = predictions
        self._held_bytes = held_bytes
        self._value = 0.0

    def add_gradients(self, step: int, /) -> None:
        """As the protocol says."""
        weight = self._strength / self._places_of_step(step)
        total = 0.0
        for rows in self._rows_of_step(step):
            with torch.no_grad():
                base = self._base_predictions(rows)
            logits = self._predictions(self._model, rows)
            divergence, gradient = divergence_and_gradient(logits.detach(), base)
            del base
            total += float(divergence)
            self._backward((logits * gradient.mul_(weight)).sum())
        self._value = weight * total

    def value(self) -> float:
        """As the protocol says."""
        return self._value

    def held_bytes(self) -> int:
        """As the protocol says."""
        return self._held_bytes


def divergence_and_gradient(logits: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over places of KL(base || model), and its gradient p_model - p_base by the logits.

    Args:
        logits: [n, V] of the model.
        base: [n, V] of the base model.
    """
    gradient = torch.empty_like(logits)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(logits), _PLACES):
        ours = logits[start : start + _PLACES].float().log_softmax(dim=-1)
        theirs = base[start : start + _PLACES].float().log_softmax(dim=-1)
        probabilities = theirs.exp()
        total += (probabilities * (theirs - ours)).sum(dtype=torch.float64)
        gradient[start : start + _PLACES] = ours.exp_().sub_(probabilities)
    return total, gradient
