"""Loads models with their weights spread over the ranks (ZeRO stage 3), and reads such weights whole again.

A spread parameter holds an empty tensor; DeepSpeed gathers it when its module runs. All ranks must call every function
here alike, because each gathering needs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from transformers import PreTrainedModel, TrainingArguments


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether the model's weights are spread over the ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def load_to_train(
    load: Callable[[str], PreTrainedModel],
    arguments: TrainingArguments,
    *,
    device: torch.device,
) -> PreTrainedModel:
    """Return the model that `load` returns, spread over the ranks where the arguments say stage 3.

    transformers spreads the weights while it reads them, so that no rank ever holds all of them; rank 0 alone reads
    their values.

    Args:
        load: loads the model to the device that it is given.
        arguments: the run's arguments, created before.
        device: this rank's.
    """
    settings = arguments.hf_deepspeed_config
    if settings is None or not settings.is_zero3():
        return load("cpu")
    # Imported here: after join_ranks, which tells DeepSpeed which accelerator to choose.
    import deepspeed

    # Joins the process group that torch has already.
    deepspeed.init_distributed("gloo" if device.type == "cpu" else "nccl", verbose=False)
    return load(str(device))


def whole_weights(
    model: torch.nn.Module, *, trained_only: bool = False
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yield name and whole CPU tensor of one parameter after the other; the tensor is None on every rank but 0.

    At most one whole parameter is on the accelerator at a time. Parameters that share their memory (tied heads) come
    once, by their first name.

    Args:
        model: whose parameters are spread.
        trained_only: leave out frozen ones.
    """
    import deepspeed  # as in `load_to_train`

    for name, parameter in model.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            whole = parameter.detach().cpu().contiguous() if _is_first() else None
            if whole is not None and whole.data_ptr() == parameter.data_ptr():
                whole = whole.clone()  # on the CPU the gathered memory is freed when the block ends
        yield name, whole


def _is_first() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """Return the causal model inside data-parallel, DeepSpeed and PEFT wrappers."""
    while not hasattr(model, "get_output_embeddings") and isinstance(
        inner := getattr(model, "module", None), torch.nn.Module
    ):
        model = inner
    # Not isinstance: DeepSpeed's engine passes on the attributes of the PEFT model inside it.
    get_base_model = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()
