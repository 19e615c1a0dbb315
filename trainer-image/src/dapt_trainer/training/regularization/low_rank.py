"""EWC and L2-SP for low-rank adapters: the distance is the effective weights' change, not the adapters' size.

An adapted layer's weight is W0 + s B A, so with the base weight W* the distance is D = s B A + (W0 - W*), the second
part only where earlier adapters are merged into W0. With G = strength F o D (o: by element; F is 1 in L2-SP),

    penalty = 1/2 sum G o D        dA = s B^T G        dB = s G A^T

D and F o D are made for one layer at a time and thrown away. The layers are shared out over the ranks, each of which
keeps F and W* of its own layers alone; the adapters' gradients are then added up over the ranks, which moves as many
numbers as the adapters have.

Shapes: A [r, in], B [out, r], W, D, F and G [out, in].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dapt_trainer.training.regularization.optimizer_slices import HeldWeight

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer with an adapter."""

    name: str
    """Of its weight, as the base model calls it."""
    path: str
    """Of the layer in the PEFT model."""
    module: Any

    @property
    def place(self) -> str:
        """Name of W0 in the PEFT model."""
        return f"{self.path}.base_layer.weight"

    @property
    def a_name(self) -> str:
        """Name of A in the PEFT model."""
        return f"{self.path}.lora_A.default.weight"

    @property
    def b_name(self) -> str:
        """Name of B in the PEFT model."""
        return f"{self.path}.lora_B.default.weight"

    @property
    def weight(self) -> torch.Tensor:
        """W0, frozen."""
        found: torch.Tensor = self.module.get_base_layer().weight
        return found


@dataclass(frozen=True)
class LayerTerm:
    """A held-back layer of this rank."""

    layer: AdaptedLayer
    importance: torch.Tensor | None
    """F; None: 1 everywhere."""
    base: torch.Tensor | None
    """W*; None: W0 is the base weight."""


def adapted_layers(model: Any) -> list[AdaptedLayer]:
    """All layers of a PEFT model that have an adapter, in the model's order."""
    from peft.tuners.lora import LoraLayer

    return [
        AdaptedLayer(path.removeprefix(_PREFIX) + ".weight", path, module)
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer) and "default" in getattr(module, "lora_A", {})
    ]


def share_of_layers(layers: Sequence[AdaptedLayer], rank: int, world_size: int) -> list[AdaptedLayer]:
    """This rank's layers: the largest first, each to the rank with the fewest weights so far."""
    loads = [0] * world_size
    mine = []
    for layer in sorted(layers, key=lambda layer: (-layer.weight.numel(), layer.name)):
        lightest = loads.index(min(loads))
        loads[lightest] += layer.weight.numel()
        if lightest == rank:
            mine.append(layer)
    return mine


class LowRankPenalty:
    """Over the layers of a PEFT model."""

    before_last_backward = False

    def __init__(
        self,
        strength: float,
        terms: Sequence[LayerTerm],
        layers: Sequence[AdaptedLayer],
        weights: Sequence[HeldWeight],
        *,
        world_size: int = 1,
    ) -> None:
        """Make it.

        Args:
            strength: weight of the penalty.
            terms: this rank's layers.
            layers: all held-back layers, in the same order on every rank.
            weights: what this rank's optimizer holds of the adapters.
            world_size: ranks among which the layers are shared out.
        """
        self._strength = strength
        self._terms = tuple(terms)
        self._world_size = world_size
        self._distance = torch.zeros((), dtype=torch.float64)
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for layer in layers:
            a, b = _matrices(layer)
            for name, matrix in ((layer.a_name, a), (layer.b_name, b)):
                self._places[name] = (end, matrix.numel())
                end += matrix.numel()
        self._length = end
        self._weights = [weight for weight in weights if weight.name in self._places]
        self._device = layers[0].weight.device

    def add_gradients(self, _step: int, /) -> None:
        """As the protocol says."""
        with torch.no_grad():
            flat = torch.zeros(self._length, device=self._device)
            distances = [self._add_layer(term, flat) for term in self._terms]
            if distances:
                self._distance = torch.stack(distances).sum(dtype=torch.float64)
            if self._world_size > 1:
                dist.all_reduce(flat)
            for weight in self._weights:
                first = self._places[weight.name][0] + weight.start
                weight.gradient().add_(flat[first : first + weight.count])

    def _add_layer(self, term: LayerTerm, flat: torch.Tensor) -> torch.Tensor:
        a, b = (matrix.float() for matrix in _matrices(term.layer))
        scaling = float(term.layer.module.scaling["default"])
        distance = (b @ a).mul_(scaling)
        if term.layer.module.fan_in_fan_out:
            distance = distance.T
        if term.base is not None:
            distance += term.layer.weight.float() - term.base
        weighted = distance if term.importance is None else distance * term.importance
        squared = torch.dot(weighted.reshape(-1), distance.reshape(-1))
        if term.layer.module.fan_in_fan_out:
            weighted = weighted.T
        scaling *= self._strength
        self._place(flat, term.layer.a_name, (b.T @ weighted).mul_(scaling))
        self._place(flat, term.layer.b_name, (weighted @ a.T).mul_(scaling))
        return squared

    def _place(self, flat: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        start, count = self._places[name]
        flat[start : start + count] = gradient.reshape(-1)

    def value(self) -> float:
        """As the protocol says."""
        return self._strength / 2.0 * float(self._distance)

    def held_bytes(self) -> int:
        """As the protocol says."""
        tensors = [tensor for term in self._terms for tensor in (term.importance, term.base)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _matrices(layer: AdaptedLayer) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.module.lora_A["default"].weight, layer.module.lora_B["default"].weight
