"""Computes EWC and L2-SP: a weighted squared distance to the anchor.

    penalty = strength / 2 * sum_i F_i (theta_i - theta*_i)^2        gradient_i = strength F_i (theta_i - theta*_i)

EWC (Kirkpatrick et al. 2017): F is the diagonal Fisher information, scaled to mean 1 over the group. L2-SP (Li et al.
2018): F is 1 everywhere, so a strength means the same weight on average in both. The gradient is added by hand: an
autograd graph over all weights would cost another copy of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dapt_trainer.training.regularization.optimizer_slices import OptimizerSlice

_PART_ELEMENTS = {"cpu": 2**16, "gpu": 2**24}


@dataclass(frozen=True)
class Term:
    """Holds one penalized weight, or this rank's part of it; tensors of shape [count]."""

    weight: OptimizerSlice
    anchor: torch.Tensor
    importance: torch.Tensor | None
    """F; None: 1 everywhere."""


class QuadraticPenalty:
    """Penalizes the distance of trained weights to their anchors."""

    before_last_backward = False

    def __init__(self, strength: float, terms: Sequence[Term], *, copies: int = 1) -> None:
        """`copies` is on how many ranks each term exists, so that the ranks' values add up to the whole."""
        self._strength = strength
        self._terms = tuple(terms)
        self._copies = copies
        self._distance = torch.zeros((), dtype=torch.float64)

    def add_gradients(self, _step: int, /) -> None:
        """Add strength F (theta - theta*) to the gradients."""
        with torch.no_grad():
            distances = [self._add(term) for term in self._terms]
        if distances:
            self._distance = torch.stack(distances).sum()

    def _add(self, term: Term) -> torch.Tensor:
        """Add a term's gradient and return its weighted squared distance."""
        # A part at a time, so that the intermediate values stay in a CPU's cache, and small on a GPU.
        master, gradient = term.weight.master(), term.weight.gradient()
        size = _PART_ELEMENTS["cpu" if master.device.type == "cpu" else "gpu"]
        buffers = torch.empty((2, min(size, len(master))), dtype=torch.float32, device=master.device)
        total = torch.zeros((), dtype=torch.float64, device=master.device)
        for start in range(0, len(master), size):
            part = slice(start, start + size)
            distance, weighted = buffers[:, : len(master[part])]
            torch.sub(master[part], term.anchor[part], out=distance)
            if term.importance is None:
                weighted = distance
            else:
                torch.mul(distance, term.importance[part], out=weighted)
            total += torch.dot(weighted, distance)
            gradient[part].add_(weighted, alpha=self._strength)
        return total

    def value(self) -> torch.Tensor | float:
        """Return strength / 2 sum F (theta - theta*)^2 in nats, as this rank's share."""
        return self._strength / 2.0 * self._distance / self._copies

    def held_bytes(self) -> int:
        """Return the size of anchors and importances."""
        tensors = [tensor for term in self._terms for tensor in (term.anchor, term.importance)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
