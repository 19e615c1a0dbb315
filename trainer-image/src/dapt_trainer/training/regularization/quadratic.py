"""EWC and L2-SP: a weighted squared distance to the anchor.

    penalty = strength / 2 * sum_i F_i (theta_i - theta*_i)^2        gradient_i = strength F_i (theta_i - theta*_i)

EWC (Kirkpatrick et al. 2017): F is the diagonal Fisher information, scaled to mean 1 over the group. L2-SP (Li et al.
2018): F is 1 everywhere, so a strength means the same weight on average in both. The gradient is added by hand: an
autograd graph over all weights would cost another copy of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dapt_trainer.training.regularization.shards import HeldWeight


@dataclass(frozen=True)
class Term:
    """One held-back weight, or this rank's part of it; tensors of shape [count]."""

    weight: HeldWeight
    anchor: torch.Tensor
    importance: torch.Tensor | None
    """None: 1 everywhere."""


class QuadraticPenalty:
    """Over trained weights."""

    before_last_backward = False

    def __init__(self, strength: float, terms: Sequence[Term], *, copies: int = 1) -> None:
        """`copies`: on how many ranks each term stands, so that the ranks' values add up."""
        self._strength = strength
        self._terms = tuple(terms)
        self._copies = copies
        self._value = torch.zeros((), dtype=torch.float64)

    def add_gradients(self, _step: int, /) -> None:
        """As the protocol says."""
        doubled: list[torch.Tensor] = []
        for term in self._terms:
            distance = term.weight.master().float() - term.anchor
            gradient = distance * self._strength
            if term.importance is not None:
                gradient *= term.importance
            doubled.append(torch.dot(gradient, distance))
            term.weight.add_to_gradient(gradient)
        if doubled:
            self._value = torch.stack(doubled).sum(dtype=torch.float64)

    def value(self) -> float:
        """As the protocol says."""
        return float(self._value) / 2.0 / self._copies

    def held_bytes(self) -> int:
        """As the protocol says."""
        tensors = [tensor for term in self._terms for tensor in (term.anchor, term.importance)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
