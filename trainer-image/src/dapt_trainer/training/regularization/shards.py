"""The part of each trained weight that this rank updates, and its finished gradient."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class HeldWeight(Protocol):
    """`count` numbers from `start` on of a weight's flattened values."""

    name: str
    start: int
    count: int

    def master(self) -> torch.Tensor:
        """[count] as the optimizer holds them."""
        ...

    def add_to_gradient(self, gradient: torch.Tensor) -> None:
        """Add to the gradient that the optimizer will read; [count], fp32."""
        ...


class PlainWeight:
    """A whole weight of a module that an ordinary optimizer trains."""

    def __init__(self, name: str, weight: torch.nn.Parameter) -> None:
        self.name, self._weight = name, weight
        self.start, self.count = 0, weight.numel()

    def master(self) -> torch.Tensor:
        """As the protocol says."""
        return self._weight.detach().reshape(-1)

    def add_to_gradient(self, gradient: torch.Tensor) -> None:
        """As the protocol says; a weight that the batch did not reach gets its gradient here."""
        shaped = gradient.view(self._weight.shape).to(self._weight.dtype)
        if self._weight.grad is None:
            self._weight.grad = shaped
        else:
            self._weight.grad.add_(shaped)


def plain_weights(model: Any) -> list[HeldWeight]:
    """All trained weights of a module."""
    return [PlainWeight(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
