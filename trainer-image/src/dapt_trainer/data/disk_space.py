"""Whether the work volume has room for what the run will write."""

from __future__ import annotations

import shutil
from pathlib import Path

from dapt_contract.stages.prepare import ModelFacts
from dapt_trainer.errors import InputError

_GIB = 1024**3
_WEIGHT_BYTES = 2
"""bf16."""
_OPTIMIZER_BYTES = 12
"""fp32 master weights and AdamW's two moments of each trained parameter."""
_LORA_RANK = 64
_KEPT_OPTIMIZER_STATES = 2


def checkpoint_bytes(model: ModelFacts, *, trains_all_weights: bool) -> tuple[int, int]:
    """(weights, optimizer state) of one checkpoint in bytes.

    With LoRA both are of adapters of rank 64 on all linear layers: rank x (in + out) parameters for each of the four
    attention and three feed-forward matrices of a layer.
    """
    if trains_all_weights:
        return model.parameters * _WEIGHT_BYTES, model.parameters * _OPTIMIZER_BYTES
    hidden, inner = model.hidden_size, model.intermediate_size
    heads = max(1, model.attention_heads)
    key_value = hidden * max(1, model.key_value_heads) // heads
    layer = 2 * (hidden + hidden) + 2 * (hidden + key_value) + 3 * (hidden + inner)
    trained = _LORA_RANK * layer * model.layers
    return trained * 4, trained * _OPTIMIZER_BYTES


def check_space(
    work: Path,
    model: ModelFacts,
    *,
    checkpoints_kept: int,
    trains_all_weights: bool,
    copies: int = 0,
    attempts: int = 1,
) -> str | None:
    """Refuse a run whose checkpoints cannot be written; a warning where those of further attempts would not fit.

    A further attempt begins only where the one before forgot too much, so room for it is no condition.

    Args:
        work: root of the work volume.
        model: the base model.
        checkpoints_kept: to be there at the end.
        trains_all_weights: else adapters.
        copies: of the base model that will be written beside it: one with a grown tokenizer's rows.
        attempts: at most so many, the first included; the checkpoints of all of them stay candidates.

    Raises:
        InputError: not enough disk for two checkpoints with their optimizer state, or for all that are to be kept.
    """
    weights, optimizer = checkpoint_bytes(model, trains_all_weights=trains_all_weights)
    free = shutil.disk_usage(work).free
    for count, what, remedy in (
        (2, "two checkpoints", "use a larger volume, or train LoRA instead of all weights"),
        (
            checkpoints_kept,
            f"the {checkpoints_kept} checkpoints to keep",
            "use a larger volume, or lower spec.pretraining.checkpoints.count",
        ),
    ):
        needed = copies * model.weights_bytes + count * weights + _KEPT_OPTIMIZER_STATES * optimizer
        if free < needed:
            raise InputError(
                f"{work}: not enough disk for {what}: {needed / _GIB:.1f} GiB are needed, {free / _GIB:.1f} GiB are "
                f"free; {remedy}"
            )
    needed += (attempts - 1) * checkpoints_kept * weights
    if free >= needed:
        return None
    return (
        f"{work} has {free / _GIB:.1f} GiB free; the checkpoints of {attempts} attempts, should the run be rolled "
        f"back, take up to {needed / _GIB:.1f} GiB: use a larger volume, or lower spec.gates.rollback.maxRollbacks or "
        "spec.pretraining.checkpoints.count."
    )
