"""Finds the part of each trained weight that this rank's optimizer updates, and its finished gradient.

| training | master weights | a rank's part |
| --- | --- | --- |
| fp32 without ZeRO, or no DeepSpeed | the parameters | all |
| bf16 without ZeRO | fp32, flat, in addition to the parameters | all |
| ZeRO 1 and 2 | fp32, flat | its slice of the flattened weights |

The gradient is the mean over the ranks at this point, so whatever is added is added once, unscaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, cast

import torch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class OptimizerSlice(Protocol):
    """Describes `count` numbers of a weight's flattened values, from `start` on."""

    name: str
    start: int
    count: int

    def master(self) -> torch.Tensor:
        """Return [count] as the optimizer holds them."""
        ...

    def gradient(self) -> torch.Tensor:
        """Return [count] of the gradient that the optimizer will read; additions in place take effect."""
        ...


class PlainWeight:
    """Gives access to a whole weight of a module that an ordinary optimizer trains."""

    def __init__(self, name: str, weight: torch.nn.Parameter) -> None:
        self.name, self._weight = name, weight
        self.start, self.count = 0, weight.numel()

    def master(self) -> torch.Tensor:
        """Return the weight, flat."""
        return self._weight.detach().reshape(-1)

    def gradient(self) -> torch.Tensor:
        """Return the gradient, flat; zeros for a weight that the batch did not reach."""
        if self._weight.grad is None:
            self._weight.grad = torch.zeros_like(self._weight, memory_format=torch.contiguous_format)
        # A flat copy would take the additions in place of the gradient that the optimizer reads.
        elif not self._weight.grad.is_contiguous():
            self._weight.grad = self._weight.grad.contiguous()
        return self._weight.grad.view(-1)


class MixedWeight:
    """Gives access to a whole bf16 weight whose fp32 master is a slice of DeepSpeed's flat copy, without ZeRO."""

    def __init__(self, name: str, weight: torch.nn.Parameter, master: torch.Tensor) -> None:
        self.name, self._weight, self._master = name, weight, master
        self.start, self.count = 0, weight.numel()
        weight.grad_dtype = None  # the finished gradient may be fp32, while backward still produces bf16

    def master(self) -> torch.Tensor:
        """Return the fp32 master."""
        return self._master.detach()

    def gradient(self) -> torch.Tensor:
        """Return the gradient in fp32, which DeepSpeed takes from here: bf16 would round the penalty away."""
        gradient = self._weight.grad
        self._weight.grad = (
            torch.zeros_like(self._master) if gradient is None else gradient.float().contiguous()
        )
        self._weight.grad = self._weight.grad.view(self._weight.shape)
        return self._weight.grad.view(-1)


class _Address(Protocol):
    """Describes where a slice lies in a flattened weight."""

    start: int
    numel: int


class _Mapping(Protocol):
    """Describes what DeepSpeed keeps of this rank's slice of a weight."""

    lp_fragment_address: _Address
    hp_fragment: torch.Tensor
    gradient_dict: Mapping[int, list[torch.Tensor]]
    param_group_index: int


class _ZeroParameter(Protocol):
    """Describes a weight under ZeRO 1 and 2: DeepSpeed hangs its own attributes on the parameter."""

    _hp_mapping: _Mapping
    _index_in_param_group: int


class PartitionedWeight:
    """Gives access to this rank's slice of a weight under ZeRO 1 and 2."""

    def __init__(self, name: str, weight: torch.nn.Parameter) -> None:
        zero = cast(_ZeroParameter, weight)  # torch's type has none of DeepSpeed's attributes
        self.name, self._mapping, self._index = name, zero._hp_mapping, zero._index_in_param_group
        address = self._mapping.lp_fragment_address
        self.start, self.count = int(address.start), int(address.numel)

    def master(self) -> torch.Tensor:
        """Return the fp32 master of the slice."""
        return self._mapping.hp_fragment.detach()

    def gradient(self) -> torch.Tensor:
        """Return the gradient of the slice in fp32.

        DeepSpeed keeps a list of slices, each of which it casts to fp32 later; the cast is made here and put back.
        """
        slices = self._mapping.gradient_dict[self._mapping.param_group_index]
        gradient = slices[self._index]
        if gradient.dtype != torch.float32 or not gradient.is_contiguous():
            gradient = slices[self._index] = gradient.float().contiguous()
        return gradient.view(-1)


def plain_weights(model: torch.nn.Module) -> list[OptimizerSlice]:
    """Return all trained weights of a module."""
    return [PlainWeight(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def engine_weights(engine: DeepSpeedEngine, model: torch.nn.Module) -> tuple[list[OptimizerSlice], int]:
    """Return what this rank holds of the trained weights of `model`, and on how many ranks each part exists.

    Raises:
        NotImplementedError: the weights are spread over the ranks, or the optimizer's state is offloaded.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3 or getattr(optimizer, "cpu_offload", False):
        raise NotImplementedError("penalties need ZeRO 0, 1 or 2 without offload")
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if engine.zero_optimization():
        return [
            PartitionedWeight(name, weight)
            for name, weight in trained
            # DeepSpeed sets it on the weights of which this rank has a part.
            if getattr(weight, "_hp_mapping", None) is not None
        ], 1
    # Without ZeRO every rank has the whole optimizer, so each computes the whole penalty.
    copies = int(engine.dp_world_size)
    if hasattr(optimizer, "fp32_groups_flat"):
        masters = dict(_masters(optimizer.fp16_groups, optimizer.fp32_groups_flat))
        return [MixedWeight(name, weight, masters[weight]) for name, weight in trained], copies
    return plain_weights(model), copies


def _masters(
    groups: list[list[torch.nn.Parameter]], flat_groups: list[torch.Tensor]
) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Yield each weight with its slice of the flat fp32 copy."""
    for group, flat in zip(groups, flat_groups, strict=True):
        # DeepSpeed concatenates a group's weights in their order, and says nowhere where each begins.
        start = 0
        for weight in group:
            yield weight, flat.narrow(0, start, weight.numel())
            start += weight.numel()
