"""Converts ZeRO checkpoints for another number of ranks, by way of DeepSpeed's universal checkpoint.

Without ZeRO every rank holds the whole optimizer state, so there is nothing to convert. With it the state is in as many
shards as there were ranks, and DeepSpeed loads them on another number only in its universal format (one file for each
parameter and moment). The shards are pickles, which are read restricted, as in every resume. Converted files have no
signature, so the ranks tell each other the digests of what they have written.

The ranks of the first node share the work: first the old shards, which are cut into fragments, then the parameters,
whose fragments are joined. Those of other nodes wait: a network file system may show them a folder as it was before.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter

from dapt_contract.checkpoint import FileEntry
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.checkpoints.inventory import RESUME_FOLDER, StoredCheckpoint
from dapt_trainer.checkpoints.resume_files import ResumeFiles
from dapt_trainer.distributed import Ranks
from dapt_trainer.staged_files import hashing_saves

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_FILES: TypeAdapter[tuple[FileEntry, ...]] = TypeAdapter(tuple[FileEntry, ...])
_IS_SHARED: TypeAdapter[bool] = TypeAdapter(bool)
_PHASES = 2
"""Parts of a conversion that are shared: shards, then parameters."""
Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


class _ShareDone(Exception):  # noqa: N818 - no error: the first rank does the rest alone
    """Ends the conversion on a rank that has done its share."""


class _SharedWork:
    """Takes the place of DeepSpeed's pool of processes: each rank of the first node does its share of each phase.

    Args:
        ranks: all ranks; each of them waits for the others after each phase.
        count: ranks that share the work; they are the first ones.
    """

    def __init__(self, ranks: Ranks, count: int) -> None:
        self._ranks = ranks
        self._count = count
        self._phase = 0

    def __call__(self, work: Callable[[Chunk], Result], chunks: Iterable[Chunk], _: int) -> list[Result]:
        # By name, for an order that is the same on every rank.
        own = sorted(chunks, key=str)[self._ranks.rank :: self._count]
        results = [work(chunk) for chunk in own]
        self._ranks.barrier()
        self._phase += 1
        if self._phase == _PHASES and not self._ranks.is_first:
            raise _ShareDone
        return results


def must_convert(resumed: StoredCheckpoint | None, *, world_size: int, zero_stage: int) -> bool:
    """Return whether the optimizer's shards were written by another number of ranks."""
    return resumed is not None and zero_stage > 0 and resumed.manifest.world_size != world_size


def convert_to_universal(
    checkpoint: ResumeFiles, target: Path, ranks: Ranks, *, zero_stage: int
) -> tuple[FileEntry, ...]:
    """Write `target/resume` so that any number of ranks can resume from `target`, and return its files.

    All ranks call it.

    Args:
        checkpoint: files of a complete checkpoint, as this rank sees them.
        target: replaced if it exists; remove it once it was loaded.
        ranks: of this run.
        zero_stage: that has written the checkpoint.

    Raises:
        OSError: the disk is full.
        InfrastructureError, InputError: as `ResumeFiles.loading`.
    """
    tag = (checkpoint.folder / RESUME_FOLDER / "latest").read_text().strip()
    converted = target / RESUME_FOLDER
    if ranks.is_first:
        remove_folder(target)
        (converted / tag).mkdir(parents=True)
    # Ranks of the first node have the same number there as among all.
    count = sum(ranks.gather(ranks.rank == ranks.local_rank, _IS_SHARED))  # after the folder was made
    written: list[FileEntry] = []
    if ranks.rank == ranks.local_rank:
        temporary = converted / tag / "tmp"
        with checkpoint.loading(own_output=converted), hashing_saves(target, but=temporary) as written:
            _write_universal(checkpoint, converted / tag, tag, _SharedWork(ranks, count), zero_stage)
    else:
        for _ in range(_PHASES):
            ranks.barrier()
    if ranks.is_first:
        written += _written_alongside(checkpoint, target, tag)
    every = ranks.gather(tuple(written), _FILES)
    return tuple(sorted((file for files in every for file in files), key=lambda file: file.path))


def _write_universal(
    checkpoint: ResumeFiles, output: Path, tag: str, shared: _SharedWork, zero_stage: int
) -> None:
    # Imported here: after join_ranks, which tells DeepSpeed which accelerator to choose.
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(checkpoint.folder / RESUME_FOLDER / tag),
        output_folder=str(output),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # the shards name no parallel layout of the model: there is none
    )
    own = vars(ds_to_universal)
    pool, stage_of = own["_do_parallel_work"], own["_get_zero_stage"]
    # To find the stage out, it would load a whole shard, on every rank the same.
    own |= {"_do_parallel_work": shared, "_get_zero_stage": lambda _: zero_stage}
    try:
        # DeepSpeed prints its options and draws a progress bar.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(_ShareDone),
        ):
            ds_to_universal.main(options)
    finally:
        own |= {"_do_parallel_work": pool, "_get_zero_stage": stage_of}


def _written_alongside(checkpoint: ResumeFiles, target: Path, tag: str) -> list[FileEntry]:
    """Write what a resume reads besides the converted state, and return those files."""
    converted = target / RESUME_FOLDER
    names = [f"{RESUME_FOLDER}/scheduler.pt", f"{RESUME_FOLDER}/trainer_state.json"]
    # DeepSpeed copies the states of the model as they are, which are places alone. The random states stay behind: each
    # belongs to one of the old ranks.
    names += [
        path.relative_to(target).as_posix() for path in sorted((converted / tag).glob("*model_states.pt"))
    ]
    entries = [checkpoint.copy(name, target / name) for name in names]
    for name in ("latest", "latest_universal"):
        content = tag.encode()
        (converted / name).write_bytes(content)
        entries.append(
            FileEntry(
                path=f"{RESUME_FOLDER}/{name}",
                size_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    return entries


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
