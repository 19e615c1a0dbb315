"""Writes the model of a recipe as one PEFT adapter on the base model, where the recipe has nothing but adapters.

What a recipe does to a weight is a sum of terms f s B A, with f the adapter's share in a mean and in an interpolation.
Such a sum is one low-rank product again: the matrices A below each other, and the matrices f s B side by side. So means
and interpolations of adapters are adapters too, exactly, of the sum of their ranks. Where modules have different ranks,
the smaller ones are filled up with zeros. Rows of trained tokens are absolute values: they are computed as the merged
model's are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig as PeftLoraConfig
from pydantic import JsonValue

from dapt_contract.base import JsonObject
from dapt_contract.stages.common import ModelReference
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.written_models.adapters import (
    ADAPTER_FILE,
    SETTINGS_FILE,
    StoredAdapter,
    open_adapter,
)
from dapt_trainer.modeling.written_models.shard_files import PlannedTensor, write_shard
from dapt_trainer.modeling.written_models.tensor_folders import TensorFolder, empty_model

_KEPT_SETTINGS: Final = ("fan_in_fan_out", "task_type")
_NAMED: Final = ("target_modules", "target_parameters")
_SCALING: Final = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class BaseModelName:
    """Names the model that an adapter belongs to."""

    name: str
    """ORG/NAME on the hub; elsewhere what the public may know of its place."""
    revision: str | None = None


@dataclass(frozen=True)
class _Term:
    """An adapter, and the factor of its change in the result."""

    adapter: StoredAdapter
    factor: float


def write_adapter(
    work: Path,
    recipe: ModelReference,
    folder: Path,
    base_model: BaseModelName,
    heartbeat: Callable[[], None],
) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        work: root of the work volume.
        recipe: adapters on the origin's weights, in means, interpolated and tuned as it says.
        folder: that gets the two files.
        base_model: for the configuration.
        heartbeat: called at least once a tensor.

    Raises:
        InputError: the recipe has other weights than the origin's, no adapter, or adapters that are not alike.
    """
    adapters = _Adapters(work, recipe)
    settings = adapters.settings()
    if adapters.is_one:
        shutil.copyfile(adapters.terms[0].adapter.folder / ADAPTER_FILE, folder / ADAPTER_FILE)
    else:
        planned = adapters.plan()
        write_shard(folder / ADAPTER_FILE, list(planned), lambda tensor: planned[tensor](), heartbeat)
    config = PeftLoraConfig(bias="none").to_dict() | settings
    config |= {"base_model_name_or_path": base_model.name, "revision": base_model.revision}
    config["inference_mode"] = True
    # PEFT holds names of modules as a set, whose order differs from process to process.
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, default=sorted)
    (folder / SETTINGS_FILE).write_text(f"{text}\n", encoding="utf-8")


class _Adapters:
    """Opens the adapters of a recipe and computes the tensors of the one that they make."""

    def __init__(self, work: Path, recipe: ModelReference) -> None:
        members = [(recipe.weights, recipe.adapters)]
        members += [(member.weights, member.adapters) for member in recipe.averaged_with]
        others = sorted({weights for weights, _ in members} - {recipe.origin})
        if others:
            raise InputError(
                f"{work / others[0]}: has weights of its own, and an adapter on the base model is to be published; "
                "write output.form: merged"
            )
        skeleton = empty_model(work, recipe.origin)
        self._work, self._recipe = work, recipe
        self._members = [[open_adapter(work / name, skeleton) for name in names] for _, names in members]
        self._tuned = [open_adapter(work / name, skeleton) for name in recipe.tuned]
        share = recipe.interpolation / len(members)
        self.terms = [_Term(adapter, share) for member in self._members for adapter in member]
        self.terms += [_Term(adapter, 1.0) for adapter in self._tuned]
        if not self.terms:
            raise InputError(
                f"{work / recipe.origin}: the published model has no adapter; write output.form: merged"
            )

    @property
    def is_one(self) -> bool:
        """Whether the result is an adapter that lies there already."""
        return len(self.terms) == 1 and self.terms[0].factor == 1.0

    def settings(self) -> JsonObject:
        """Return what the configuration has of the adapters' own."""
        first = self.terms[0].adapter.settings
        settings: JsonObject = {name: first[name] for name in _KEPT_SETTINGS if name in first}
        for name in _NAMED:
            settings[name] = _union(name, [term.adapter for term in self.terms])
        rows = [adapter for adapter in self._all() if adapter.settings.get("trainable_token_indices")]
        if rows:
            settings["trainable_token_indices"] = rows[0].settings["trainable_token_indices"]
        if self.is_one:
            return settings | {name: first[name] for name in _SCALING if name in first}
        # The scales are in the matrices.
        return settings | {"r": self._rank, "lora_alpha": self._rank}

    def plan(self) -> Mapping[PlannedTensor, Callable[[], torch.Tensor]]:
        """Return the tensors of the result, each with the function that computes it."""
        tensors: dict[PlannedTensor, Callable[[], torch.Tensor]] = {}
        for name in dict.fromkeys(name for adapter in self._all() for name in adapter.changes):
            changes = [adapter.changes[name] for adapter in self._all() if name in adapter.changes]
            first = changes[0]
            if any(change.whole for change in changes):
                raise InputError(f"{first.whole}: was trained whole, which no adapter of low rank can hold")
            if any(change.rows for change in changes):
                self._plan_rows(name, tensors)
            if any(change.a for change in changes):
                self._plan_matrices(name, tensors)
        return tensors

    def _plan_matrices(self, name: str, tensors: dict[PlannedTensor, Callable[[], torch.Tensor]]) -> None:
        terms = [term for term in self.terms if name in term.adapter.changes and term.adapter.changes[name].a]
        keys = terms[0].adapter.changes[name]
        shapes = [term.adapter.shapes(name) for term in terms]
        experts = terms[0].adapter.num_experts(name)
        rank = self._rank * experts
        a = PlannedTensor(keys.a, (rank, shapes[0][0][1]), torch.float32)
        b = PlannedTensor(keys.b, (shapes[0][1][0], rank), torch.float32)
        tensors[a] = lambda: self._joined_a(name, terms, experts)
        tensors[b] = lambda: self._joined_b(name, terms, experts)

    def _joined_a(self, name: str, terms: list[_Term], experts: int) -> torch.Tensor:
        """Return the matrices A below each other, [e r, in]."""
        matrices = [term.adapter.matrices(name)[0] for term in terms]
        width = matrices[0].shape[1]
        joined = torch.cat([matrix.reshape(experts, -1, width) for matrix in matrices], dim=1)
        filled = torch.zeros(experts, self._rank, width)
        filled[:, : joined.shape[1]] = joined
        return filled.reshape(-1, width)

    def _joined_b(self, name: str, terms: list[_Term], experts: int) -> torch.Tensor:
        """Return the matrices B side by side, [out, r e], each with its scale and its share."""
        scaled = [
            term.adapter.matrices(name)[1] * (term.factor * term.adapter.scale_of(name)) for term in terms
        ]
        height = scaled[0].shape[0]
        joined = torch.cat([matrix.reshape(height, -1, experts) for matrix in scaled], dim=1)
        filled = torch.zeros(height, self._rank, experts)
        filled[:, : joined.shape[1]] = joined
        return filled.reshape(height, -1)

    def _plan_rows(self, name: str, tensors: dict[PlannedTensor, Callable[[], torch.Tensor]]) -> None:
        changing = [adapter for adapter in self._all() if name in adapter.changes]
        ids = [adapter.token_ids(name) for adapter in changing if adapter.changes[name].rows]
        if any(other != ids[0] for other in ids) or any(adapter.changes[name].a for adapter in changing):
            raise InputError(
                f"{changing[-1].folder}: changes {name} in other rows or another way than the adapters before it; "
                "write output.form: merged"
            )
        width = changing[0].skeleton.get_parameter(name).shape[1]
        key = next(adapter.changes[name].rows for adapter in changing if adapter.changes[name].rows)
        planned = PlannedTensor(key, (len(ids[0]), width), torch.float32)
        tensors[planned] = lambda: self._weight(name)[ids[0]]

    def _weight(self, name: str) -> torch.Tensor:
        """Return a weight of the merged model, in fp32, as `write_down` computes it."""
        origin = TensorFolder(self._work, self._recipe.origin).weight(name)
        total = torch.zeros_like(origin)
        for member in self._members:
            total.add_(_merged(origin.clone(), name, member))
        total.div_(len(self._members)).sub_(origin).mul_(self._recipe.interpolation).add_(origin)
        return _merged(total, name, self._tuned)

    @property
    def _rank(self) -> int:
        """Return the largest sum of ranks of a module."""
        sums: dict[str, int] = {}
        for term in self.terms:
            for name, change in term.adapter.changes.items():
                if change.a:
                    rank = term.adapter.shapes(name)[0][0] // term.adapter.num_experts(name)
                    sums[name] = sums.get(name, 0) + rank
        return max(sums.values())

    def _all(self) -> list[StoredAdapter]:
        return [term.adapter for term in self.terms]


def _merged(weight: torch.Tensor, name: str, adapters: Iterable[StoredAdapter]) -> torch.Tensor:
    for adapter in adapters:
        weight = adapter.merge_into(name, weight)
    return weight


def _union(name: str, adapters: list[StoredAdapter]) -> JsonValue:
    """Return the names of modules or parameters of all adapters; None where no adapter has any.

    Raises:
        InputError: an adapter names them by a pattern.
    """
    names: set[str] = set()
    for adapter in adapters:
        value = adapter.settings.get(name)
        if isinstance(value, list):
            names |= {str(entry) for entry in value}
        elif value is not None:
            raise InputError(
                f"{adapter.folder / SETTINGS_FILE}: {name} is {ascii(value)[:100]}, and a list is expected"
            )
    return [*sorted(names)] or None
