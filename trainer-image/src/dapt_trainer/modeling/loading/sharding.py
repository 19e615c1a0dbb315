"""Loads models with their weights spread over the ranks (ZeRO stage 3), and reads such weights whole again.

A spread parameter holds an empty tensor; DeepSpeed gathers it when its module runs. All ranks must call every function
here alike, because each gathering needs them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dapt_trainer.modeling.loading.own_shares import reading_own_shares

if TYPE_CHECKING:
    # The arguments' module brings the Trainer's callbacks and PEFT, which no measuring stage needs.
    from transformers import PreTrainedModel, TrainingArguments


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether the model's weights are spread over the ranks."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def load_to_train(
    load: Callable[[str], PreTrainedModel],
    arguments: TrainingArguments,
    *,
    device: torch.device,
    folder: Path,
) -> PreTrainedModel:
    """Return the model that `load` returns, spread over the ranks where the arguments say stage 3.

    The weights are spread while they are read, so that no rank ever holds all of them: each reads what it keeps. At
    other stages each rank needs all of them and maps the files into memory, of which the ranks of a node share one
    copy: the volume is read once a node.

    Args:
        load: loads the model to the device that it is given.
        arguments: the run's arguments, created before.
        device: this rank's.
        folder: of the weights.
    """
    settings = arguments.hf_deepspeed_config
    if settings is None or not settings.is_zero3():
        return load("cpu")
    # Imported here: after join_ranks, which tells DeepSpeed which accelerator to choose.
    import deepspeed

    # Joins the process group that torch has already.
    deepspeed.init_distributed("gloo" if device.type == "cpu" else "nccl", verbose=False)
    with reading_own_shares(folder):
        return load(str(device))


@contextlib.contextmanager
def gathered(tensor: torch.Tensor) -> Iterator[None]:
    """Make one spread parameter whole on every rank within the block; other tensors are left as they are."""
    if not hasattr(tensor, "ds_id"):
        yield
        return
    import deepspeed  # as in `load_to_train`

    with deepspeed.zero.GatheredParameters([tensor]):
        yield


def unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """Return the causal model inside data-parallel, DeepSpeed and PEFT wrappers."""
    while not hasattr(model, "get_output_embeddings") and isinstance(
        inner := getattr(model, "module", None), torch.nn.Module
    ):
        model = inner
    # Not isinstance: DeepSpeed's engine passes on the attributes of the PEFT model inside it.
    get_base_model = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()
