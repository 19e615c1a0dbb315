"""Checks that the work volume has the space for what the run will write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from dapt_contract.inputs.model_size import checkpoint_size
from dapt_contract.stages.prepare import ModelFacts, PrepareConfig
from dapt_trainer.errors import InputError

_GIB: Final = 1024**3


def check_space(work: Path, model: ModelFacts, config: PrepareConfig) -> str | None:
    """Refuse a run whose checkpoints cannot be written; return a warning where those of further attempts do not fit.

    A further attempt begins only where the one before forgot too much, so space for it is no condition. Sizes are those
    of the planner's estimate (`dapt_contract.inputs.model_size`).

    Args:
        work: root of the work volume.
        model: the base model.
        config: says what pretraining trains, how many checkpoints are kept, and how many attempts there may be.

    Raises:
        InputError: not enough disk for two checkpoints with their optimizer state, or for all that are to be kept.
    """
    extension = config.tokenizer_extension
    # How many tokens the corpus brings is not known yet: as many as may be added are counted, as in the estimate.
    trained = model if extension is None else model.with_added_tokens(extension.vocabulary_size)
    # The model with the new tokens' rows is written once more, besides the checkpoints.
    copies_bytes = 0 if extension is None else model.weights_bytes
    checkpoint = checkpoint_size(trained, config.trained_adapters, config.precision)
    free_bytes = shutil.disk_usage(work).free
    for count, what, remedy in (
        (2, "two checkpoints", "use a larger volume, or train LoRA instead of all weights"),
        (
            config.checkpoints_kept,
            f"the {config.checkpoints_kept} checkpoints to keep",
            "use a larger volume, or lower spec.pretraining.checkpoints.count",
        ),
    ):
        needed_bytes = copies_bytes + checkpoint.total_bytes(count)
        if free_bytes < needed_bytes:
            raise InputError(
                f"{work}: not enough disk for {what}: {needed_bytes / _GIB:.1f} GiB are needed, "
                f"{free_bytes / _GIB:.1f} GiB are free; {remedy}"
            )
    needed_bytes += (config.attempts - 1) * config.checkpoints_kept * checkpoint.weights_bytes
    if free_bytes >= needed_bytes:
        return None
    return (
        f"{work} has {free_bytes / _GIB:.1f} GiB free; the checkpoints of {config.attempts} attempts, should the run "
        f"be rolled back, take up to {needed_bytes / _GIB:.1f} GiB: use a larger volume, or lower "
        "spec.gates.rollback.maxRollbacks or spec.pretraining.checkpoints.count."
    )
