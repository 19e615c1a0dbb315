"""Computes EWC and L2-SP for low-rank adapters: the distance is the effective weights' change, not the adapters' size.

An adapted layer's weight is W0 + s B A, so with the base weight W* the distance is D = s B A + (W0 - W*), the second
part only where earlier adapters are merged into W0. With G = strength F o D (o: by element; F is 1 in L2-SP),

    penalty = 1/2 sum G o D        dA = s B^T G        dB = s G A^T

D and F o D are computed for one layer at a time and freed. The layers are divided among the ranks, each of which keeps
F and W* of its own layers only; the adapters' gradients are then summed over the ranks, which moves as many numbers as
the adapters have.

Shapes: A [r, in], B [out, r], W, D, F and G [out, in].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer

from dapt_trainer.modeling.protocols import LoraModule
from dapt_trainer.training.regularization.optimizer_slices import OptimizerSlice

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdaptedLayer:
    """Refers to a layer with an adapter."""

    name: str
    """Name of its weight in the base model."""
    path: str
    """Path of the layer in the PEFT model."""
    module: LoraModule

    @property
    def weight_name(self) -> str:
        """Return the name of W0 in the PEFT model."""
        return f"{self.path}.base_layer.weight"

    @property
    def a_name(self) -> str:
        """Return the name of A in the PEFT model."""
        return f"{self.path}.lora_A.default.weight"

    @property
    def b_name(self) -> str:
        """Return the name of B in the PEFT model."""
        return f"{self.path}.lora_B.default.weight"

    @property
    def weight(self) -> torch.Tensor:
        """Return W0, which is frozen."""
        return self.module.get_base_layer().weight


@dataclass(frozen=True)
class LayerTerm:
    """Holds a penalized layer of this rank."""

    layer: AdaptedLayer
    importance: torch.Tensor | None
    """F; None: 1 everywhere."""
    base: torch.Tensor | None
    """W*; None: W0 is the base weight."""


def adapted_layers(model: torch.nn.Module) -> list[AdaptedLayer]:
    """Return all layers of a PEFT model that have an adapter, in the model's order."""
    return [
        # mypy does not follow peft, so the class says nothing of its attributes.
        AdaptedLayer(path.removeprefix(_PREFIX) + ".weight", path, cast(LoraModule, module))
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer) and "default" in getattr(module, "lora_A", {})
    ]


def share_of_layers(layers: Sequence[AdaptedLayer], rank: int, world_size: int) -> list[AdaptedLayer]:
    """Return this rank's layers; the largest are assigned first, each to the rank with the fewest weights so far."""
    loads = [0] * world_size
    mine = []
    # By name too: every rank has to divide layers of one size alike.
    for layer in sorted(layers, key=lambda layer: (-layer.weight.numel(), layer.name)):
        lightest = loads.index(min(loads))
        loads[lightest] += layer.weight.numel()
        if lightest == rank:
            mine.append(layer)
    return mine


class LowRankPenalty:
    """Penalizes the change of the effective weights of a PEFT model's layers."""

    before_last_backward = False

    def __init__(
        self,
        strength: float,
        terms: Sequence[LayerTerm],
        layers: Sequence[AdaptedLayer],
        weights: Sequence[OptimizerSlice],
        *,
        world_size: int = 1,
    ) -> None:
        """Configure the penalty.

        Args:
            strength: weight of the penalty.
            terms: this rank's layers.
            layers: all penalized layers, in the same order on every rank.
            weights: what this rank's optimizer holds of the adapters.
            world_size: number of ranks among which the layers are divided.
        """
        self._strength = strength
        self._terms = tuple(terms)
        self._world_size = world_size
        self._distance = torch.zeros((), dtype=torch.float64)
        self._spans: dict[str, tuple[int, int]] = {}
        end = 0
        for layer in layers:
            a, b = _matrices(layer)
            for name, matrix in ((layer.a_name, a), (layer.b_name, b)):
                self._spans[name] = (end, matrix.numel())
                end += matrix.numel()
        self._length = end
        self._weights = [weight for weight in weights if weight.name in self._spans]
        self._device = layers[0].weight.device

    def add_gradients(self, _step: int, /) -> None:
        """Add the penalty's gradient to that of the adapters."""
        with torch.no_grad():
            # One flat tensor for the gradients of all adapters: one reduction instead of two a layer.
            flat = torch.zeros(self._length, device=self._device)
            distances = [self._add_layer(term, flat) for term in self._terms]
            # With more ranks than layers a rank has none.
            if distances:
                self._distance = torch.stack(distances).sum(dtype=torch.float64)
            if self._world_size > 1:
                dist.all_reduce(flat)
            for weight in self._weights:
                first = self._spans[weight.name][0] + weight.start
                weight.gradient().add_(flat[first : first + weight.count])

    def _add_layer(self, term: LayerTerm, flat: torch.Tensor) -> torch.Tensor:
        # fp32: the change is small beside the weights, and bf16 would lose it in the difference below.
        a, b = (matrix.float() for matrix in _matrices(term.layer))
        scaling = float(term.layer.module.scaling["default"])
        distance = (b @ a).mul_(scaling)
        # Layers such as GPT-2's Conv1D hold their weight as [in, out].
        if term.layer.module.fan_in_fan_out:
            distance = distance.T
        if term.base is not None:
            distance += term.layer.weight.float() - term.base
        weighted = distance if term.importance is None else distance * term.importance
        squared = torch.dot(weighted.reshape(-1), distance.reshape(-1))
        if term.layer.module.fan_in_fan_out:
            weighted = weighted.T
        scaling *= self._strength
        self._write(flat, term.layer.a_name, (b.T @ weighted).mul_(scaling))
        self._write(flat, term.layer.b_name, (weighted @ a.T).mul_(scaling))
        return squared

    def _write(self, flat: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        start, count = self._spans[name]
        flat[start : start + count] = gradient.reshape(-1)

    def value(self) -> torch.Tensor | float:
        """Return the penalty in nats, as this rank's share."""
        return self._strength / 2.0 * self._distance

    def held_bytes(self) -> int:
        """Return the size of importances and base weights."""
        tensors = [tensor for term in self._terms for tensor in (term.importance, term.base)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _matrices(layer: AdaptedLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of a layer."""
    return layer.module.lora_A["default"].weight, layer.module.lora_B["default"].weight
