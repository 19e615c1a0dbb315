"""The weights of a checkpoint or result, as safetensors: an adapter, or a whole model with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write what a `ModelReference` can name: a PEFT adapter folder, or a model folder with its tokenizer.

    Raises:
        OSError, safetensors.SafetensorError: the disk is full.
    """
    from peft import PeftModel

    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        _save_adapter(model, folder)
        return
    used_cache = model.config.use_cache
    model.config.use_cache = True  # training switches it off; generation needs it
    try:
        model.save_pretrained(folder)
    finally:
        model.config.use_cache = used_cache
    tokenizer.save_pretrained(folder)


def _save_adapter(model: Any, folder: Path) -> None:
    """As `PeftModel.save_pretrained`, without its model card and its look at the hub."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    settings = model.peft_config["default"]
    was_inference = settings.inference_mode
    settings.inference_mode = True
    try:
        settings.save_pretrained(folder)
    finally:
        settings.inference_mode = was_inference
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
