"""The part of each trained weight that this rank's optimizer updates, and its finished gradient.

| training | master weights | a rank's part |
| --- | --- | --- |
| fp32 without ZeRO, or no DeepSpeed | the parameters | all |
| bf16 without ZeRO | fp32, flat, beside the parameters | all |
| ZeRO 1 and 2 | fp32, flat | its slice of the flattened weights |

The gradient is the mean over the ranks at this point, so whatever is added is added once, unscaled.
"""

from __future__ import annotations

from collections.abc import Iterator
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

    def gradient(self) -> torch.Tensor:
        """[count] of the gradient that the optimizer will read: what is added to it in place counts."""
        ...


class PlainWeight:
    """A whole weight of a module that an ordinary optimizer trains."""

    def __init__(self, name: str, weight: torch.nn.Parameter) -> None:
        self.name, self._weight = name, weight
        self.start, self.count = 0, weight.numel()

    def master(self) -> torch.Tensor:
        """As the protocol says."""
        return self._weight.detach().reshape(-1)

    def gradient(self) -> torch.Tensor:
        """As the protocol says; a weight that the batch did not reach gets its gradient here."""
        if self._weight.grad is None:
            self._weight.grad = torch.zeros_like(self._weight, memory_format=torch.contiguous_format)
        elif not self._weight.grad.is_contiguous():
            self._weight.grad = self._weight.grad.contiguous()
        return self._weight.grad.view(-1)


class MixedWeight:
    """A whole bf16 weight whose fp32 master is a slice of DeepSpeed's flat copy, without ZeRO."""

    def __init__(self, name: str, weight: torch.nn.Parameter, master: torch.Tensor) -> None:
        self.name, self._weight, self._master = name, weight, master
        self.start, self.count = 0, weight.numel()
        weight.grad_dtype = None  # the finished gradient may be fp32; backward goes on making bf16 ones

    def master(self) -> torch.Tensor:
        """As the protocol says."""
        return self._master.detach()

    def gradient(self) -> torch.Tensor:
        """As the protocol says; fp32, which DeepSpeed takes from here: bf16 would round the penalty away."""
        found = self._weight.grad
        self._weight.grad = torch.zeros_like(self._master) if found is None else found.float().contiguous()
        self._weight.grad = self._weight.grad.view(self._weight.shape)
        return self._weight.grad.view(-1)


class PartitionedWeight:
    """This rank's slice of a weight under ZeRO 1 and 2."""

    def __init__(self, name: str, weight: torch.nn.Parameter) -> None:
        self.name, self._weight = name, weight
        self._mapping = weight._hp_mapping
        address = self._mapping.lp_fragment_address
        self.start, self.count = int(address.start), int(address.numel)

    def master(self) -> torch.Tensor:
        """As the protocol says."""
        found: torch.Tensor = self._mapping.hp_fragment.detach()
        return found

    def gradient(self) -> torch.Tensor:
        """As the protocol says; DeepSpeed keeps a list of slices, each of which it casts to fp32 later."""
        slices = self._mapping.gradient_dict[self._mapping.param_group_index]
        place = self._weight._index_in_param_group
        found = slices[place]
        if found.dtype != torch.float32 or not found.is_contiguous():
            found = slices[place] = found.float().contiguous()
        return found.view(-1)


def plain_weights(model: Any) -> list[HeldWeight]:
    """All trained weights of a module."""
    return [PlainWeight(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def engine_weights(engine: Any, model: Any) -> tuple[list[HeldWeight], int]:
    """What this rank holds of the trained weights of `model` under a DeepSpeed engine, and on how many ranks each
    part stands.

    Raises:
        NotImplementedError: the weights are spread over the ranks, or the optimizer's state is offloaded.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3 or getattr(optimizer, "cpu_offload", False):
        raise NotImplementedError("penalties are made for ZeRO 0 to 2 without offload")
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if engine.zero_optimization():
        return [
            PartitionedWeight(name, weight)
            for name, weight in trained
            if getattr(weight, "_hp_mapping", None) is not None
        ], 1
    copies = int(engine.dp_world_size)
    if hasattr(optimizer, "fp32_groups_flat"):
        masters = dict(_masters(optimizer))
        return [MixedWeight(name, weight, masters[weight]) for name, weight in trained], copies
    return plain_weights(model), copies


def _masters(optimizer: Any) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
        start = 0
        for weight in group:
            yield weight, flat.narrow(0, start, weight.numel())
            start += weight.numel()
