"""The weights of a checkpoint or result, as safetensors: an adapter, or a whole model with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dapt_trainer.modeling.sharding import is_sharded, whole_weights

SHARD_BYTES = 4 * 2**30
"""Of one safetensors file; as much as rank 0 holds of a model that is spread over the ranks."""


def save_weights(model: Any, tokenizer: Any, folder: Path, *, is_writer: bool = True) -> None:
    """Write what a `ModelReference` can name: a PEFT adapter folder, or a model folder with its tokenizer.

    Called by all ranks; under ZeRO's stage 3 they all give their share of each weight.

    Args:
        model: to save, without DeepSpeed's wrapper.
        tokenizer: to lie beside it.
        folder: made if absent.
        is_writer: whether this is rank 0, which writes.

    Raises:
        OSError, safetensors.SafetensorError: the disk is full.
    """
    from peft import PeftModel

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


def _save_sharded(model: Any, folder: Path, *, is_writer: bool) -> None:
    """As `save_pretrained`, file by file, so that rank 0 never holds more than one file of weights.

    Models whose names or layouts differ in files (mixtures of experts) are gathered whole first, since transformers
    turns them back as a whole.
    """
    from safetensors.torch import save_file

    if getattr(model, "_weight_conversions", None):
        whole = {name: tensor for name, tensor in whole_weights(model) if tensor is not None}
        if is_writer:
            model.save_pretrained(folder, state_dict=whole)
        return
    files: list[dict[str, Any]] = [{}]
    sizes: dict[str, int] = {}
    names: list[list[str]] = []

    def write() -> None:
        names.append(list(files[0]))
        save_file(files[0], _part(folder, len(names)), metadata={"format": "pt"})
        files[0] = {}

    for name, tensor in whole_weights(model):
        if tensor is None:
            continue
        sizes[name] = tensor.numel() * tensor.element_size()
        if files[0] and sum(sizes[held] for held in files[0]) + sizes[name] > SHARD_BYTES:
            write()
        files[0][name] = tensor
    if not is_writer:
        return
    write()
    _name_parts(folder, names, total_bytes=sum(sizes.values()))
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"


def _name_parts(folder: Path, names: list[list[str]], *, total_bytes: int) -> None:
    """Give the parts the names that `from_pretrained` looks for, and an index when there are several."""
    if len(names) == 1:
        _part(folder, 1).rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, held in enumerate(names, start=1):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        _part(folder, number).rename(folder / file)
        places |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _save_adapter(model: Any, folder: Path, *, sharded: bool, is_writer: bool) -> None:
    """As `PeftModel.save_pretrained`, without its model card and its look at the hub."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    whole = None
    if sharded:
        whole = {
            name: tensor for name, tensor in whole_weights(model, trained_only=True) if tensor is not None
        }
    if not is_writer:
        return
    settings = model.peft_config["default"]
    was_inference = settings.inference_mode
    settings.inference_mode = True
    try:
        settings.save_pretrained(folder)
    finally:
        settings.inference_mode = was_inference
    state = get_peft_model_state_dict(model, state_dict=whole, save_embedding_layers=False)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
