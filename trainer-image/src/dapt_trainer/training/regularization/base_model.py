"""The base model that a run is held near: its weights' names and shapes, and its values one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dapt_trainer.modeling.compose import Tensors, tensors_of_folder
from dapt_trainer.modeling.model_folder import check_model_folder


def empty_model(work: Path, weights: str) -> Any:
    """The model of a folder without values (on the meta device): names and shapes of its parameters.

    Raises:
        InputError: there is no model in the folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model_folder(work / weights)
    config = AutoConfig.from_pretrained(work / weights, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def base_tensors(work: Path, weights: str) -> Tensors:
    """Reads a parameter of the base model by its name, in fp32 on the CPU.

    Raises:
        InputError: there is no model in the folder.
    """
    return tensors_of_folder(work, weights, empty_model(work, weights), weights)
