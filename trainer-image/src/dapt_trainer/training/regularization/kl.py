"""Computes the KL divergence of predictions on general text to the frozen base model's (Hinton et al. 2015, Li and
Hoiem 2016).

    penalty = strength * mean over positions of KL(base || model) = sum_v p_base(v) (log p_base(v) - log p_model(v))

at temperature 1, over the labelled positions of a few general training sequences that are drawn for each step, as a
function of the step alone. The batch's own general sequences would not do: without replay there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dapt_trainer.modeling.attention import Batch
from dapt_trainer.training.regularization.penalty import Predictions, causal_predictions

_CHUNK_POSITIONS = 1024
"""Positions whose fp32 probabilities are in memory at a time."""


@dataclass(frozen=True)
class GeneralBatches:
    """Provides the general text that the divergence of each step is taken on."""

    of_step: Callable[[int], Sequence[Batch]]
    """Returns this rank's micro-batches of a step."""
    positions_of_step: Callable[[int], int]
    """Returns the labelled positions of a step over all ranks."""


@dataclass(frozen=True)
class BaseModel:
    """Provides the frozen base model."""

    predictions: Callable[[Batch], torch.Tensor]
    """Returns its logits [n, V] on a batch, without a graph."""
    held_bytes: int = 0
    """Memory that it takes in addition to the trained model."""


class KlPenalty:
    """Penalizes the divergence from the base model, with forward and backward passes of its own."""

    before_last_backward = True

    def __init__(
        self,
        strength: float,
        model: torch.nn.Module,
        base: BaseModel,
        general: GeneralBatches,
        *,
        backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
        predictions: Predictions = causal_predictions,
    ) -> None:
        """Configure the penalty.

        Args:
            strength: weight of the mean divergence.
            model: the trained one.
            base: the base model.
            general: text of each step.
            backward: of a loss whose gradients are summed over ranks.
            predictions: returns the model's logits [n, V] on a batch.
        """
        self._strength = strength
        self._model = model
        self._base = base
        self._general = general
        self._backward = backward
        self._predictions = predictions
        self._value: torch.Tensor | float = 0.0

    def add_gradients(self, step: int, /) -> None:
        """Run forward and backward passes on the general text of the step."""
        # By the positions of all ranks, since the ranks' gradients are summed: a mean of means would weigh ranks, not
        # tokens.
        weight = self._strength / self._general.positions_of_step(step)
        total: torch.Tensor | float = 0.0
        for batch in self._general.of_step(step):
            with torch.no_grad():
                base = self._base.predictions(batch)
            logits = self._predictions(self._model, batch)
            divergence, gradient = divergence_and_gradient(logits.detach(), base)
            del base  # as large as the logits, and not needed during the backward pass
            total = total + divergence
            # The gradient of this product by the logits is `gradient`: no graph of the divergence is built, which would
            # hold several fp32 copies of all logits.
            self._backward((logits * gradient.mul_(weight)).sum())
        self._value = weight * total

    def value(self) -> torch.Tensor | float:
        """Return the penalty in nats, as this rank's share."""
        return self._value

    def held_bytes(self) -> int:
        """Return the memory of the base model."""
        return self._base.held_bytes


def divergence_and_gradient(logits: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum over positions of KL(base || model), and its gradient p_model - p_base by the logits.

    Args:
        logits: [n, V] of the model.
        base: [n, V] of the base model.
    """
    gradient = torch.empty_like(logits)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for start in range(0, len(logits), _CHUNK_POSITIONS):
        # fp32: a log-softmax in bf16 would round away what two similar models differ by.
        ours = logits[start : start + _CHUNK_POSITIONS].float().log_softmax(dim=-1)
        theirs = base[start : start + _CHUNK_POSITIONS].float().log_softmax(dim=-1)
        probabilities = theirs.exp()
        total += (probabilities * (theirs - ours)).sum(dtype=torch.float64)
        gradient[start : start + _CHUNK_POSITIONS] = ours.exp_().sub_(probabilities)
    return total, gradient
