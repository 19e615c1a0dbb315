"""Reads the base model that a penalty is anchored at: names and shapes, and values one tensor at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dapt_trainer.modeling.compose import Tensors, tensors_of_folder
from dapt_trainer.modeling.stored_models.model_folder import check_model_folder


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


def base_tensors(work: Path, weights: str) -> Tensors:
    """Return a reader of the base model's parameters by their names, in fp32 on the CPU.

    Raises:
        InputError: there is no model in the folder.
    """
    return tensors_of_folder(work, weights, empty_model(work, weights), weights)
