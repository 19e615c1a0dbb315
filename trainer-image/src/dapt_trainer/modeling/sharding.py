"""Models whose weights are spread over the ranks (ZeRO's stage 3): loading them so, and reading them whole again.

A spread parameter holds an empty tensor; DeepSpeed gathers it when its module runs. Everything here is called by all
ranks alike, since each gathering needs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def is_sharded(model: Any) -> bool:
    """Whether the model's weights are spread over the ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def load_to_train(
    load: Callable[[str], Any], arguments: Any, *, device: torch.device, from_files: bool
) -> Any:
    """The model that `load` returns, spread over the ranks where the arguments say stage 3.

    transformers spreads the weights while it reads them, so that no rank ever holds all of them; rank 0 alone reads
    their values. A model that is computed first (adapters merged, an average) is made whole in every rank's CPU memory
    and then spread, parameter by parameter: the accelerators never hold more than their share either way.

    Args:
        load: loads the model to the device that it is given.
        arguments: the run's `TrainingArguments`, made before.
        device: this rank's.
        from_files: the model is one folder of weights, with nothing to compute.
    """
    settings = arguments.hf_deepspeed_config
    if settings is None or not settings.is_zero3():
        return load("cpu")
    import deepspeed
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    deepspeed.init_distributed(
        "gloo" if device.type == "cpu" else "nccl", verbose=False
    )  # joins torch's group
    if from_files:
        return load(str(device))
    unset_hf_deepspeed_config()
    try:
        model = load("cpu")
    finally:
        set_hf_deepspeed_config(settings)
    deepspeed.zero.Init(module=model, config_dict_or_path=settings.config)
    return model


def whole_weights(model: Any, *, trained_only: bool = False) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Name and whole CPU tensor of one parameter after the other; None on every rank but 0.

    At most one whole parameter is on the accelerator at a time. Parameters that share their memory (tied heads) come
    once, by their first name.

    Args:
        model: whose parameters are spread.
        trained_only: leave out frozen ones.
    """
    import deepspeed

    for name, parameter in model.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            whole = parameter.detach().cpu().contiguous() if _is_first() else None
            if whole is not None and whole.data_ptr() == parameter.data_ptr():
                whole = whole.clone()  # on the CPU the gathered memory is given back when the block ends
        yield name, whole


def _is_first() -> bool:
    return not torch.distributed.is_initialized() or int(torch.distributed.get_rank()) == 0


def unwrapped(model: Any) -> Any:
    """The causal model inside data-parallel, DeepSpeed and PEFT wrappers."""
    while not hasattr(model, "get_output_embeddings") and hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
