"""Converts ZeRO checkpoints for another number of ranks, by way of DeepSpeed's universal checkpoint.

Without ZeRO every rank holds the whole optimizer state, so there is nothing to convert. With it the state is in as many
shards as there were ranks, and DeepSpeed loads them on another number only in its universal format (one file for each
parameter and moment). The shards are pickles, which are read restricted, as in every resume. Converted files have no
signature, so each rank is given their digests by the first, which wrote them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from dapt_contract.checkpoint import FileEntry
from dapt_trainer.checkpoints.inventory import RESUME_FOLDER
from dapt_trainer.checkpoints.resume_files import ResumeFiles
from dapt_trainer.checkpoints.save import list_files

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

CONVERTED: TypeAdapter[tuple[FileEntry, ...]] = TypeAdapter(tuple[FileEntry, ...])
"""What a conversion returns, as ranks exchange it."""


def convert_to_universal(checkpoint: ResumeFiles, target: Path) -> tuple[FileEntry, ...]:
    """Write `target/resume` so that any number of ranks can resume from `target`, and return its files.

    Args:
        checkpoint: files of a complete checkpoint.
        target: replaced if it exists; remove it once it was loaded.

    Raises:
        OSError: the disk is full.
        InfrastructureError, InputError: as `ResumeFiles.loading`.
    """
    # Imported here: after join_ranks, which tells DeepSpeed which accelerator to choose.
    from deepspeed.checkpoint.ds_to_universal import main as write_universal

    source, converted = checkpoint.folder / RESUME_FOLDER, target / RESUME_FOLDER
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
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        checkpoint.loading(own_output=converted),
    ):
        write_universal(options)
    # DeepSpeed copies these as they are, which are places alone.
    for path in (converted / tag).glob("*model_states.pt"):
        checkpoint.copy(f"{RESUME_FOLDER}/{tag}/{path.name}", path)
    # What transformers reads alongside. The random states stay behind: each belongs to one of the old ranks.
    for name in ("scheduler.pt", "trainer_state.json"):
        checkpoint.copy(f"{RESUME_FOLDER}/{name}", converted / name)
    for name in ("latest", "latest_universal"):
        (converted / name).write_text(tag)
    return list_files(target)


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
