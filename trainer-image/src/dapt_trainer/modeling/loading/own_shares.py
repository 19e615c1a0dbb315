"""Reads the weights of a model that is spread over the ranks: each rank reads the part of each tensor that it keeps.

transformers lets rank 0 read the whole model and send it to the others. A rank keeps one piece of each flat parameter
(ZeRO stage 3), which lies in one piece in the file too, so 64 ranks read a model once together, at the speed of 64
readers, and send nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, modeling_utils

from dapt_trainer.modeling.stored_models.weight_files import INDEX, SINGLE_FILE, weight_map

_LOADER = "_load_state_dict_into_zero3_model"


class _StoredTensor(Protocol):
    """Describes a tensor of a safetensors file of which nothing is read yet."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, rows: slice, /) -> torch.Tensor: ...


@contextlib.contextmanager
def reading_own_shares(folder: Path) -> Iterator[None]:
    """Make transformers read the spread weights of a folder within the block as this module does.

    Where names or shapes in the files are not the model's (mixtures of experts), transformers converts and loads them
    itself, through rank 0.
    """
    original = getattr(modeling_utils, _LOADER)

    def load(
        model: PreTrainedModel, state: Mapping[str, torch.Tensor], load_config: object = None
    ) -> tuple[list[str], set[str]]:
        names = _stored_names(model, state)
        if names is None:
            found: tuple[list[str], set[str]] = original(model, state, load_config)
            return found
        _read_shares(model, names, folder)
        return [], set(model.state_dict()) - names.keys()

    setattr(modeling_utils, _LOADER, load)
    try:
        yield
    finally:
        setattr(modeling_utils, _LOADER, original)


def _stored_names(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> dict[str, str] | None:
    """Return the name in the files by name in the model; None where the files are laid out in another way.

    A model without its head, or with one, may be stored without or with its prefix.
    """
    prefix = f"{model.base_model_prefix}."
    tensors = model.state_dict(keep_vars=True)
    names: dict[str, str] = {}
    for stored, value in state.items():
        own = stored if stored in tensors else f"{prefix}{stored}"
        if own not in tensors or tuple(value.shape) != _shape_of(tensors[own]):
            return None
        names[own] = stored
    # What is missing, transformers ties to what is there or reports.
    return names


def _shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    # Under stage 3 the parameter itself is empty.
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _read_shares(model: PreTrainedModel, names: Mapping[str, str], folder: Path) -> None:
    """Copy this rank's piece of each tensor from the files into the model."""
    file_of = _files_of(folder)
    files = {path: safe_open(path, framework="pt") for path in set(file_of.values())}
    tensors = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, stored in names.items():
            tensor = tensors[name]
            values: _StoredTensor = files[file_of[stored]].get_slice(stored)
            share = getattr(tensor, "ds_tensor", None)
            if share is None:
                tensor.copy_(_piece(values, 0, tensor.numel()).view(tensor.shape))
            else:
                _copy_share(
                    values, share, tensor.ds_numel, torch.distributed.get_rank(tensor.ds_process_group)
                )
            # Or transformers would draw its first values again.
            tensor._is_hf_initialized = True


def _copy_share(values: _StoredTensor, share: torch.Tensor, whole_numel: int, rank: int) -> None:
    """Copy a rank's piece of a flat parameter; the last pieces are filled up with zeros."""
    start = min(rank * share.numel(), whole_numel)
    stop = min(start + share.numel(), whole_numel)
    flat = share.view(-1)
    if stop > start:
        flat[: stop - start].copy_(_piece(values, start, stop))
    flat[stop - start :].zero_()


def _piece(values: _StoredTensor, start: int, stop: int) -> torch.Tensor:
    """Return elements `start` to `stop` of a flat tensor, reading the rows that hold them and no others."""
    shape = values.get_shape()
    if not shape:
        return values[:].reshape(-1)
    row_numel = max(1, int(torch.Size(shape[1:]).numel()))
    first, last = start // row_numel, -(-stop // row_numel)
    rows = values[first:last].reshape(-1)
    return rows[start - first * row_numel : stop - first * row_numel]


def _files_of(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor by its name."""
    if (folder / SINGLE_FILE).is_file() or not (folder / INDEX).is_file():
        with safe_open(folder / SINGLE_FILE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / SINGLE_FILE)
    return {name: folder / file for name, file in weight_map(folder).items()}
