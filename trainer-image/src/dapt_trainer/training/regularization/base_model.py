"""Reads the base model that a penalty is anchored at, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dapt_trainer.modeling.written_models.tensor_folders import open_source

Tensors = Callable[[str], torch.Tensor]
"""Returns a parameter by its name, in fp32 on the CPU."""


def base_tensors(work: Path, weights: str) -> Tensors:
    """Return a reader of the base model's parameters by their names, in fp32 on the CPU.

    Raises:
        InputError: there is no model in the folder.
    """
    return open_source(work, weights).weight
