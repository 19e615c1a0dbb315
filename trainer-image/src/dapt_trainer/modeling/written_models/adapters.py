"""Merges adapters from their files, weight by weight, with the arithmetic of PEFT's `merge_and_unload` in fp32.

For LoRA (Hu et al. 2021) a weight W becomes W + s B A with s = alpha / r, or alpha / sqrt(r) with rslora (Kalajdzievski
2023). The experts of a mixture, which are one tensor with an axis for them, have a B A each. Rows of trained tokens and
modules that were trained whole take the place of the old values. Other kinds of adapters are refused: dapt never writes
them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from pydantic import JsonValue
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dapt_contract.inputs.json_files import read_json_object
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.stored_models.model_folder import check_adapter_folder
from dapt_trainer.modeling.written_models.adapter_settings import setting_problems

ADAPTER_FILE: Final = "adapter_model.safetensors"
SETTINGS_FILE: Final = "adapter_config.json"
_PREFIX: Final = "base_model.model."
_A: Final = (".lora_A.weight", ".lora_embedding_A")
_B: Final = (".lora_B.weight", ".lora_embedding_B")
_ROWS: Final = (".token_adapter.trainable_tokens_delta", ".trainable_tokens_delta")
_WRAPPED: Final = re.compile(r"(\.base_layer)+$")
"""Adapters of several parameters of one module are wrapped in one another."""
_UNSUPPORTED: Final = ("layer_replication", "lora_bias", "use_dora")
"""Settings that change the arithmetic in a way that is not followed here."""


@dataclass
class Change:
    """Names the tensors of the file that change one weight; empty where there is none."""

    module: str
    a: str = ""
    b: str = ""
    rows: str = ""
    whole: str = ""


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter on the work volume; it holds no value but while a weight is merged."""

    folder: Path
    settings: Mapping[str, JsonValue]
    skeleton: PreTrainedModel
    changes: Mapping[str, Change] = field(default_factory=dict)
    """By the model's name of the weight."""

    def merge_into(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with the adapter merged, changed in place where it can be.

        Args:
            name: the model's name of the weight.
            weight: fp32 on the CPU.

        Raises:
            InputError: the adapter is of another shape.
        """
        change = self.changes.get(name)
        if change is None:
            return weight
        with safe_open(self.folder / ADAPTER_FILE, framework="pt") as file:
            if change.whole:
                return self._fitting(name, file.get_tensor(change.whole).to(torch.float32, copy=True), weight)
            if change.a and change.b:
                a, b = self.matrices(name)
                if weight.dim() == 3:
                    delta = self._of_experts(change, a, b, num_experts=weight.shape[0])
                else:
                    delta = b @ a
                    # PEFT keeps the matrices of an embedding, and of GPT-2's layers, the other way round.
                    if ".lora_embedding_" in change.a or isinstance(self._module(change.module), Conv1D):
                        delta = delta.T
                weight.add_(self._fitting(name, delta, weight).mul_(self.scale_of(name)))
            if change.rows:
                ids = self.token_ids(name)
                rows = file.get_tensor(change.rows).to(torch.float32)
                if rows.shape != (len(ids), *weight.shape[1:]) or max(ids, default=0) >= len(weight):
                    raise InputError(
                        f"{self.folder}: changes {len(ids)} rows of {name} by a tensor of {tuple(rows.shape)}, and the "
                        f"model's has {tuple(weight.shape)}: the adapter belongs to another model"
                    )
                weight.index_copy_(0, torch.tensor(ids), rows)
        return weight

    def matrices(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B of a weight, in fp32; of experts [e r, in] and [out, r e]."""
        change = self.changes[name]
        with safe_open(self.folder / ADAPTER_FILE, framework="pt") as file:
            return file.get_tensor(change.a).to(torch.float32), file.get_tensor(change.b).to(torch.float32)

    def shapes(self, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of A and B of a weight."""
        change = self.changes[name]
        with safe_open(self.folder / ADAPTER_FILE, framework="pt") as file:
            a, b = (file.get_slice(key).get_shape() for key in (change.a, change.b))
        return (a[0], a[1]), (b[0], b[1])

    def num_experts(self, name: str) -> int:
        """Return how many matrices a weight holds: 1, or the experts of a mixture."""
        weight = self.skeleton.get_parameter(name)
        return int(weight.shape[0]) if weight.dim() == 3 else 1

    def scale_of(self, name: str) -> float:
        """Return the factor of a weight's B A."""
        experts = self.num_experts(name)
        rank = self.shapes(name)[0][0] // experts
        return self._scale(self.changes[name].module if experts == 1 else name, rank)

    def _of_experts(
        self, change: Change, a: torch.Tensor, b: torch.Tensor, *, num_experts: int
    ) -> torch.Tensor:
        """Return B A of each expert (e); a is [e r, in] and b [out, r e], with the experts in opposite orders."""
        a = a.reshape(num_experts, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, num_experts)
        if getattr(self._module(change.module), "is_transposed", False):
            return torch.einsum("o r e, e r i -> e i o", b, a)
        return torch.einsum("o r e, e r i -> e o i", b, a)

    def _scale(self, name: str, rank: int) -> float:
        """Return the factor of a module's or parameter's B A."""
        alpha = self.settings.get("lora_alpha")
        patterns = self.settings.get("alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if re.match(rf"(.*\.)?({pattern})$", name):
                alpha = value
                break
        if not isinstance(alpha, int | float) or rank < 1:
            raise InputError(
                f"{self.folder / SETTINGS_FILE}: alpha of {name} is {alpha!r} at rank {rank}; restore the adapter"
            )
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def token_ids(self, name: str) -> list[int]:
        """Return the rows of a weight that were trained."""
        module = self.changes[name].module
        by_module = self.settings.get("trainable_token_indices")
        if isinstance(by_module, list):
            return [int(str(row)) for row in by_module]
        for name, ids in by_module.items() if isinstance(by_module, dict) else ():
            if (module == name or module.endswith(f".{name}")) and isinstance(ids, list):
                return [int(str(row)) for row in ids]
        raise InputError(
            f"{self.folder / SETTINGS_FILE}: trainable_token_indices names no rows of {module}, and the file has some"
        )

    def _module(self, name: str) -> torch.nn.Module:
        module: torch.nn.Module = self.skeleton.get_submodule(name)
        return module

    def _fitting(self, name: str, value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if value.shape != weight.shape:
            raise InputError(
                f"{self.folder}: changes {name} by a tensor of {tuple(value.shape)}, and the model's has "
                f"{tuple(weight.shape)}: the adapter belongs to another model"
            )
        return value


def open_adapter(folder: Path, skeleton: PreTrainedModel) -> StoredAdapter:
    """Return the adapter in a folder.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        skeleton: the model that it changes, without values.

    Raises:
        InputError: there is none, it must not be loaded, or it is of a kind that is not merged.
    """
    if not (folder / ADAPTER_FILE).is_file():
        raise InputError(f"{folder}: no adapter there ({ADAPTER_FILE} is missing)")
    check_adapter_folder(folder)
    settings = read_json_object(folder / SETTINGS_FILE)
    problems = [f"{name} is {settings[name]!r}" for name in _UNSUPPORTED if settings.get(name)]
    if settings.get("peft_type") != "LORA":
        problems.append(f"peft_type is {settings.get('peft_type')!r}")
    problems += setting_problems(settings)
    if settings.get("bias", "none") != "none":
        problems.append(f"bias is {settings['bias']!r}")
    with safe_open(folder / ADAPTER_FILE, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no dict
    changes: dict[str, Change] = {}
    for key in shapes:
        problem = _note(key, shapes, changes, skeleton)
        problems += [problem] if problem else []
    for name, change in changes.items():
        if bool(change.a) != bool(change.b):
            problems.append(f"{name} has one of its two matrices")
        elif change.a and not _are_matrices(shapes[change.a], shapes[change.b]):
            problems.append(f"{name} has matrices of {shapes[change.a]} and {shapes[change.b]}")
    if problems:
        raise InputError(
            f"{folder}: {'; '.join(problems)}: only LoRA adapters of weights, trained rows and whole modules are merged"
        )
    return StoredAdapter(folder, settings, skeleton, changes)


def _are_matrices(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) == 2 and a[0] == b[1] > 0


def _note(
    key: str,
    shapes: Mapping[str, tuple[int, ...]],
    changes: dict[str, Change],
    skeleton: PreTrainedModel,
) -> str:
    """Note what a tensor of the file changes; return a problem, or an empty text."""
    name = key.removeprefix(_PREFIX)
    for field_name, suffixes in (("a", _A), ("b", _B), ("rows", _ROWS)):
        suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
        if suffix is not None:
            module = _WRAPPED.sub("", name.removesuffix(suffix))
            parameter = _parameter(skeleton, f"{module}.weight") or _experts(
                skeleton,
                module,
                [shapes.get(f"{key.removesuffix(suffix)}{other}") for other in (_A[0], _B[0])],
            )
            if parameter is None:
                return f"{key} belongs to no layer of the model"
            setattr(changes.setdefault(parameter, Change(module)), field_name, key)
            return ""
    parameter = _parameter(skeleton, name)
    if parameter is None:
        return f"{key} is no part of LoRA"
    changes.setdefault(parameter, Change(name.rpartition(".")[0])).whole = key
    return ""


def _parameter(skeleton: PreTrainedModel, name: str) -> str | None:
    """Return the name under which the model lists a parameter: a tied head is the embedding."""
    try:
        value = skeleton.get_parameter(name)
    except AttributeError:
        return None
    return next((first for first, parameter in skeleton.named_parameters() if parameter is value), None)


def _experts(skeleton: PreTrainedModel, module: str, shapes: list[tuple[int, ...] | None]) -> str | None:
    """Return the parameter of a mixture's module that two matrices change: the file does not name it.

    Its shape does: in and out of the two matrices are those of one parameter alone.
    """
    shape_a, shape_b = shapes
    if shape_a is None or shape_b is None or len(shape_a) != 2 or len(shape_b) != 2:
        return None
    try:
        owner = skeleton.get_submodule(module)
    except AttributeError:
        return None
    width = (shape_b[0], shape_a[1])
    if getattr(owner, "is_transposed", False):
        width = (shape_a[1], shape_b[0])
    found = [
        name
        for name, value in owner.named_parameters(recurse=False)
        if value.dim() == 3 and tuple(value.shape[1:]) == width and shape_a[0] % value.shape[0] == 0
    ]
    return f"{module}.{found[0]}" if len(found) == 1 else None
