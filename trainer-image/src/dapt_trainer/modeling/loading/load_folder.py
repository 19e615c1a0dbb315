"""Loads ordinary model folders, which is all that stages load: what is made of others was written down before.

`written_models` writes such folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from dapt_contract.stages.common import ModelReference, Precision
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.stored_models.model_folder import check_model_folder

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SHOWN_NAMES = 3


def load_model(
    work: Path, reference: ModelReference, *, precision: Precision, device: str = "cpu"
) -> PreTrainedModel:
    """Return the model of a plain reference in evaluation mode.

    Args:
        work: root of the work volume.
        reference: a folder; whatever is made of several is written down first (`written_models`).
        precision: of the returned weights.
        device: where they are put.

    Raises:
        InputError: as `load_folder`.
        ValueError: the reference is a recipe.
    """
    if not reference.is_plain:
        raise ValueError(f"{reference!r} is a recipe: write it down, then load the folder")
    return load_folder(work, reference.weights, DTYPES[precision]).to(device=device).eval()


def load_folder(
    work: Path, weights: str, dtype: torch.dtype, *, distributed_config: DistributedConfig | None = None
) -> PreTrainedModel:
    """Return the model of a plain folder, on the CPU.

    Args:
        work: root of the work volume.
        weights: the folder.
        dtype: of the weights.
        distributed_config: how transformers divides it over ranks (`modeling.loading.spread_model`); None: it is whole.

    Raises:
        InputError: as `check_model_folder`; or the files hold other tensors than the architecture has.
    """
    transformers_logging.disable_progress_bar()  # a pod's log is not a terminal
    folder = work / weights
    check_model_folder(folder)
    # No code and no pickles of a model's folder are ever run: a folder may come from anybody.
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        trust_remote_code=False,
        attn_implementation=None,  # whatever the folder says: the stage chooses
        use_safetensors=True,
        weights_only=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, with their names
        distributed_config=distributed_config,
    )
    _require_all_tensors(model, loaded, folder)
    return model


def _require_all_tensors(
    model: PreTrainedModel, loaded: Mapping[str, Iterable[str | tuple[str, object, object]]], folder: Path
) -> None:
    """Refuse a model of which transformers has made up a tensor or dropped one: each load would give another model.

    Prepare has compared the base model already; this covers every other folder too.

    Raises:
        InputError: names the first tensors.
    """
    differences = {
        "missing": loaded["missing_keys"],
        "of another shape": loaded["mismatched_keys"],
        "unknown to the architecture": loaded["unexpected_keys"],
    }
    parts = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, keys in differences.items()
        # A mismatched tensor is listed with both of its shapes.
        if (names := sorted(key if isinstance(key, str) else key[0] for key in keys))
    ]
    if parts:
        raise InputError(
            f"{folder}: its tensors are not those of {type(model).__name__}: {'; '.join(parts)}; correct config.json, "
            "or use a complete checkpoint"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
