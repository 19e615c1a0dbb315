"""Reads the tensors of model folders one at a time, by the names that the model has for them.

Files may name a tensor in another way than the model: without the head's prefix, or as an earlier version of
transformers did. Some architectures (mixtures of experts) make one parameter of several stored tensors; such tensors
keep the names of the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from dapt_contract.inputs.model_files import read_safetensors_header
from dapt_contract.layout import EXTENDED_MODEL
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.loading.load_folder import load_folder
from dapt_trainer.modeling.stored_models.model_folder import check_model_folder
from dapt_trainer.modeling.stored_models.stored_types import StoredTypes, read_stored_types
from dapt_trainer.modeling.stored_models.weight_files import weight_files
from dapt_trainer.modeling.written_models.shard_files import TYPES


@dataclass(frozen=True)
class FolderTensor:
    """Describes one tensor of a folder."""

    stored_name: str
    """Its name in the file."""
    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_weight: bool
    """Whether it is a parameter, or a part of one: what is averaged. Buffers and masks are not."""


class TensorSource(Protocol):
    """Gives the tensors of one model."""

    name: str
    """Folder relative to the work volume, for messages."""
    skeleton: PreTrainedModel
    """The model without values."""
    tensors: dict[str, FolderTensor]
    """By name, in the order of the files."""

    def weight(self, name: str) -> torch.Tensor:
        """Return a copy of a weight, in fp32 on the CPU."""
        ...

    def stored(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored."""
        ...


class TensorFolder:
    """Reads a plain folder; values are read when they are asked for.

    Args:
        work: root of the work volume.
        weights: the folder.

    Raises:
        InputError: as `check_model_folder`; or a tensor has a type that is no plain number format.
    """

    def __init__(self, work: Path, weights: str) -> None:
        self.name = weights
        folder = work / weights
        self.skeleton = empty_model(work, weights)
        self.tensors: dict[str, FolderTensor] = {}
        names = _Names(self.skeleton)
        for file in weight_files(folder):
            header = read_safetensors_header(folder / file)
            unknown = sorted(set(header.dtypes.values()) - set(TYPES))
            if unknown:
                raise InputError(
                    f"{folder / file}: has tensors of the type {unknown[0]}, and only plain numbers are combined; use "
                    "the model before it was quantized"
                )
            for stored_name in sorted(header.offsets, key=lambda name: header.offsets[name]):
                name, is_weight = names.of(stored_name)
                dtype = TYPES[header.dtypes[stored_name]]
                # A tied head that is stored along with its embedding is the same parameter: the embedding stands for
                # both.
                if name in self.tensors and names.is_alias(stored_name):
                    continue
                self.tensors[name] = FolderTensor(
                    stored_name,
                    folder / file,
                    header.shapes[stored_name],
                    dtype,
                    is_weight=is_weight and dtype.is_floating_point,
                )

    @cached_property
    def _open_files(self) -> dict[Path, safe_open]:
        # Mapped into memory, which the kernel may take back: they do not count as held.
        return {
            path: safe_open(path, framework="pt")
            for path in dict.fromkeys(tensor.path for tensor in self.tensors.values())
        }

    def weight(self, name: str) -> torch.Tensor:
        """Return a copy of a weight, in fp32 on the CPU."""
        return self.stored(name).to(torch.float32, copy=True)

    def stored(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored."""
        tensor = self.tensors[name]
        value: torch.Tensor = self._open_files[tensor.path].get_tensor(tensor.stored_name)
        return value


class LoadedFolder:
    """Gives the tensors of a folder whose files only the architecture's class can read: it loads the model whole.

    In the folder's own precision. It is for weights that the class makes of several stored tensors.

    Args:
        work: root of the work volume.
        weights: the folder.

    Raises:
        InputError: as `load_folder`.
    """

    def __init__(self, work: Path, weights: str) -> None:
        self.name = weights
        self.skeleton = load_folder(work, weights, read_stored_types(work / weights).main)
        self._parameters: dict[str, torch.Tensor] = {
            name: value.data for name, value in self.skeleton.named_parameters() if value.is_floating_point()
        }
        self.tensors = {
            name: FolderTensor(name, work / weights, tuple(value.shape), value.dtype, is_weight=True)
            for name, value in self._parameters.items()
        }

    def weight(self, name: str) -> torch.Tensor:
        """Return a copy of a weight, in fp32 on the CPU."""
        return self._parameters[name].to(torch.float32, copy=True)

    def stored(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored."""
        return self._parameters[name]


class _Names:
    """Finds the model's name of a stored tensor, as transformers does when it loads one."""

    def __init__(self, skeleton: PreTrainedModel) -> None:
        self._prefix = skeleton.base_model_prefix
        self._state = skeleton.state_dict(keep_vars=True)
        transforms = get_model_conversion_mapping(skeleton)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._parameters = dict(skeleton.named_parameters())
        self._name_of = {id(value): name for name, value in self._parameters.items()}

    def of(self, stored_name: str) -> tuple[str, bool]:
        """Return the name, and whether it is a parameter or a part of one.

        A tensor that is converted keeps the name of the file, and so does one that the model does not know.
        """
        renamed, converter = rename_source_key(
            stored_name, self._renamings, self._converters, self._prefix, self._state
        )
        if converter is not None and (renamed in self._state or stored_name not in self._state):
            return stored_name, True
        if renamed not in self._state:
            renamed, _ = rename_source_key(stored_name, [], [], self._prefix, self._state)
        if renamed not in self._state:
            return stored_name, False
        # One parameter by two names (tied): the first one's.
        name = self._name_of.get(id(self._state[renamed]), renamed)
        return name, name in self._parameters

    def is_alias(self, stored_name: str) -> bool:
        """Return whether the stored name is one of several of its parameter, and not the first."""
        renamed, _ = rename_source_key(stored_name, self._renamings, [], self._prefix, self._state)
        return renamed not in self._parameters


def empty_model(work: Path, weights: str) -> PreTrainedModel:
    """Return the model of a folder without values (on the meta device), for names and shapes of its parameters.

    Raises:
        InputError: there is no model in the folder.
    """
    check_model_folder(work / weights)
    config = AutoConfig.from_pretrained(work / weights, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation=None)
    model.tie_weights()
    return model


def open_source(work: Path, weights: str) -> TensorSource:
    """Return a reader of every parameter of a folder's model.

    Raises:
        InputError: there is no model in the folder.
    """
    source = TensorFolder(work, weights)
    expected = {name for name, value in source.skeleton.named_parameters() if value.is_floating_point()}
    return source if expected <= weight_names(source) else LoadedFolder(work, weights)


def weight_names(source: TensorSource) -> frozenset[str]:
    """Return the names of the weights that a source gives."""
    return frozenset(name for name, tensor in source.tensors.items() if tensor.is_weight)


def types_of(source: TensorSource, stored: StoredTypes) -> dict[str, torch.dtype]:
    """Return the stored type of each tensor by the model's name of it."""
    return {
        name: stored.by_name[tensor.stored_name]
        for name, tensor in source.tensors.items()
        if tensor.stored_name in stored.by_name
    }


def require_combinable(first: TensorSource, others: Iterable[TensorSource]) -> None:
    """Refuse models that are not of one architecture.

    Raises:
        InputError: names the tied head, both vocabularies, or the first weight that differs.
    """
    for other in others:
        if _is_tied(first) != _is_tied(other):
            phrases = {True: "ties its head to its embedding", False: "has a head of its own"}
            raise InputError(
                f"{first.name} {phrases[_is_tied(first)]} and {other.name} {phrases[_is_tied(other)]}: such models "
                "cannot be combined"
            )
        _require_same_shapes(first, other)


def _is_tied(source: TensorSource) -> bool:
    return bool(source.skeleton.config.tie_word_embeddings)


def _require_same_shapes(first: TensorSource, other: TensorSource) -> None:
    expected, found = _shapes(first), _shapes(other)
    embedding = _name_of_embedding(first.skeleton)
    rows = [shapes[embedding][0] for shapes in (expected, found) if embedding in shapes]
    if len(rows) == 2 and rows[0] != rows[1]:
        raise InputError(
            f"{first.name} has a vocabulary of {rows[0]:,} tokens and {other.name} one of {rows[1]:,}: models of "
            "different vocabularies cannot be combined; where the tokenizer was extended, all of them, the origin "
            f"included, come from {EXTENDED_MODEL}"
        )
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{first.name} and {other.name} are not of one architecture: {name} is "
                f"{_shape_text(expected.get(name))} in the first and {_shape_text(found.get(name))} in the second"
            )


def _shapes(source: TensorSource) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in source.tensors.items() if tensor.is_weight}


def _name_of_embedding(model: PreTrainedModel) -> str:
    weight = model.get_input_embeddings().weight
    return next(str(name) for name, value in model.named_parameters() if value is weight)


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(str(size) for size in shape)
