"""The end of prepare: facts of each source, the digest of all data, folders moved into place."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from dapt_contract.envelope import digest_of, fsync_folder
from dapt_contract.layout import (
    DATA,
    EXTENDED_MODEL,
    HARNESS,
    HELD_OUT,
    INSTRUCTIONS,
    MODEL,
    PREFERENCES,
    PROBES,
    TASKS,
)
from dapt_contract.stages.prepare import SourceFacts
from dapt_trainer.data.choose_held_out import HeldOutChoice
from dapt_trainer.data.pack_source import PackedSource
from dapt_trainer.data.packing.data_manifest import ShardManifest
from dapt_trainer.data.spool import SpooledSource
from dapt_trainer.digests import sha256_of_file


def source_facts(spool: SpooledSource, packed: PackedSource, choice: HeldOutChoice) -> SourceFacts:
    """What the planner reads of one source."""
    held_out = [tokens for candidate, tokens in choice.chosen if candidate.source == spool.index]
    shard, counts = packed.manifest, spool.counts
    return SourceFacts(
        side=spool.side,
        index=spool.index,
        documents=shard.documents,
        train_tokens=shard.tokens,
        sequences=shard.sequences,
        duplicates=counts.duplicates + spool.repeats,
        contaminated=counts.contaminated,
        empty=counts.empty,
        bad_records=counts.bad_records,
        held_out_documents=len(held_out),
        held_out_tokens=sum(held_out),
        cut_documents=shard.cut_documents,
        fill_fraction=shard.filled_positions / max(1, shard.positions),
        weight=spool.config.weight,
    )


def data_digest(folder: Path, shards: Sequence[ShardManifest], sequence_length_tokens: int) -> str:
    """Of everything that prepare made but the model: shards, and all other files by content."""
    files = {
        str(path.relative_to(folder)): sha256_of_file(path)
        for name in (HELD_OUT, TASKS, PROBES, INSTRUCTIONS, PREFERENCES)
        for path in sorted((folder / name).glob("*.jsonl"))
    }
    files |= {
        str(path.relative_to(folder)): sha256_of_file(path)
        for path in sorted((folder / HARNESS).glob("*/task.json"))
    }
    packed = {f"{DATA}/{shard.name}/{file.name}": file.sha256 for shard in shards for file in shard.files}
    return digest_of({"sequence_length_tokens": sequence_length_tokens, "files": files | packed})


def move_into_place(made: Path, work: Path, trash: Path) -> None:
    """Move the folders below `made` to the work volume, the data with its manifest last.

    The old manifest goes first, so that a reader never finds one beside folders of another run.

    Raises:
        OSError: the volume cannot be written.
    """
    _replace(None, work / DATA, trash)
    for name in (MODEL, EXTENDED_MODEL, HELD_OUT, TASKS, HARNESS, PROBES, INSTRUCTIONS, PREFERENCES, DATA):
        folder = made / name
        _replace(folder if folder.is_dir() else None, work / name, trash)
    fsync_folder(work)
    shutil.rmtree(made, ignore_errors=True)


def _replace(made: Path | None, target: Path, trash: Path) -> None:
    if target.exists():
        target.rename(trash / f"old-{target.name}-{time.monotonic_ns()}")
    if made is not None:
        made.rename(target)
