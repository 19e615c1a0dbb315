"""Converts ZeRO checkpoints for another number of ranks, by way of DeepSpeed's universal checkpoint.

Without ZeRO every rank holds the whole optimizer state, so there is nothing to convert. With it the state is in as many
shards as there were ranks, and DeepSpeed loads them on another number only in its universal format (one file for each
parameter and moment). The shards are pickles: signature and digests must have been checked before.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dapt_trainer.checkpoints.inventory import RESUME_FOLDER

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def convert_to_universal(checkpoint: Path, target: Path) -> None:
    """Write `target/resume` so that any number of ranks can resume from `target`.

    Args:
        checkpoint: a complete checkpoint's folder.
        target: replaced if it exists; remove it once it was loaded.

    Raises:
        OSError: the disk is full.
    """
    # Imported here: after join_ranks, which tells DeepSpeed which accelerator to choose.
    from deepspeed.checkpoint.ds_to_universal import main as write_universal

    source, converted = checkpoint / RESUME_FOLDER, target / RESUME_FOLDER
    shutil.rmtree(target, ignore_errors=True)
    converted.mkdir(parents=True)
    tag = (source / "latest").read_text().strip()
    options = argparse.Namespace(
        input_folder=str(source / tag),
        output_folder=str(converted / tag),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # the shards name no parallel layout of the model: there is none
    )
    # DeepSpeed prints its options and draws a progress bar.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        write_universal(options)
    # What transformers reads alongside. The random states stay behind: each belongs to one of the old ranks.
    for name in ("scheduler.pt", "trainer_state.json"):
        shutil.copyfile(source / name, converted / name)
    for name in ("latest", "latest_universal"):
        (converted / name).write_text(tag)


def repair_optimizer(engine: DeepSpeedEngine, weight_decays: list[float]) -> None:
    """Undo two errors of DeepSpeed 0.19 when it loads a universal checkpoint of stage 3.

    It writes the first group's settings into all groups, so that norms and biases would decay too; and it gives all
    moments one shared step counter, which each of them then raises, so that Adam's bias correction would end at once.

    Args:
        engine: after loading.
        weight_decays: of the optimizer's groups, in their order.
    """
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for group, weight_decay in zip(optimizer.param_groups, weight_decays, strict=False):
        group["weight_decay"] = weight_decay
    for state in optimizer.state.values():
        if hasattr(state.get("step"), "clone"):
            state["step"] = state["step"].clone()
