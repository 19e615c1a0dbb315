"""Saves the weights of a checkpoint or result as safetensors: an adapter, or a whole model with its tokenizer."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import PreTrainedModel

from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.modeling.sharding import is_sharded, whole_weights

SHARD_BYTES = 4 * 2**30
"""Size of one safetensors file, and of what rank 0 holds at a time of a model that is spread over the ranks."""


def save_weights(
    model: PreTrainedModel | PeftModel, tokenizer: Tokenizer, folder: Path, *, is_writer: bool = True
) -> None:
    """Write what a `ModelReference` can name: a PEFT adapter folder, or a model folder with its tokenizer.

    All ranks call it; under ZeRO stage 3 they all contribute their share of each weight.

    Args:
        model: to save, without DeepSpeed's wrapper.
        tokenizer: saved in the same folder as a whole model.
        folder: created if absent.
        is_writer: whether this is rank 0, which writes.

    Raises:
        OSError, safetensors.SafetensorError: the disk is full.
    """
    sharded = is_sharded(model)
    if not (is_writer or sharded):
        return
    if is_writer:
        folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        _save_adapter(model, folder, sharded=sharded, is_writer=is_writer)
        return
    used_cache = model.config.use_cache
    model.config.use_cache = True  # training switches it off; generation needs it
    try:
        if sharded:
            _save_sharded(model, folder, is_writer=is_writer)
        else:
            model.save_pretrained(folder)
    finally:
        model.config.use_cache = used_cache
    if is_writer:
        tokenizer.save_pretrained(folder)


def _save_sharded(model: PreTrainedModel, folder: Path, *, is_writer: bool) -> None:
    """Write the files of `save_pretrained` one by one, so that rank 0 never holds more than one of them."""
    # Where names or layouts differ between files and model (mixtures of experts), transformers converts the model back
    # as a whole, so it must be gathered whole first.
    if getattr(model, "_weight_conversions", None):
        whole = {name: tensor for name, tensor in whole_weights(model) if tensor is not None}
        if is_writer:
            model.save_pretrained(folder, state_dict=whole)
        return
    tensors: dict[str, torch.Tensor] = {}
    sizes: dict[str, int] = {}
    names: list[list[str]] = []

    def write() -> None:
        names.append(list(tensors))
        save_file(tensors, _part(folder, len(names)), metadata={"format": "pt"})
        tensors.clear()

    for name, tensor in whole_weights(model):
        if tensor is None:
            continue
        sizes[name] = tensor.numel() * tensor.element_size()
        if tensors and sum(sizes[held] for held in tensors) + sizes[name] > SHARD_BYTES:
            write()
        tensors[name] = tensor
    if not is_writer:
        return
    write()
    _rename_parts(folder, names, total_bytes=sum(sizes.values()))
    # What `save_pretrained` would write into the configuration; readers choose class and type by it.
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"


def _rename_parts(folder: Path, names: list[list[str]], *, total_bytes: int) -> None:
    """Give the parts the names that `from_pretrained` looks for, and an index when there are several."""
    if len(names) == 1:
        _part(folder, 1).rename(folder / "model.safetensors")
        return
    file_of: dict[str, str] = {}
    for number, held in enumerate(names, start=1):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        _part(folder, number).rename(folder / file)
        file_of |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": file_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _save_adapter(model: PeftModel, folder: Path, *, sharded: bool, is_writer: bool) -> None:
    """Write the files of `PeftModel.save_pretrained`, without its model card and its requests to the hub."""
    whole = None
    if sharded:
        whole = {
            name: tensor for name, tensor in whole_weights(model, trained_only=True) if tensor is not None
        }
    if not is_writer:
        return
    settings = copy.copy(model.peft_config["default"])
    settings.inference_mode = True  # as `PeftModel.save_pretrained` does
    # The file is part of the adapter's digest: no path of this machine, and no order that changes with each process.
    settings.base_model_name_or_path = None
    if isinstance(settings.target_modules, set):
        settings.target_modules = sorted(settings.target_modules)
    settings.save_pretrained(folder)
    state = get_peft_model_state_dict(model, state_dict=whole, save_embedding_layers=False)
    # safetensors refuses tensors that are not contiguous.
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
