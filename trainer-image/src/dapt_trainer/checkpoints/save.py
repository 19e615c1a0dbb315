"""Writes checkpoints: partial folder, all ranks' files, rename, manifest last.

Each rank writes the files that it has staged and hashes them on the way, in a thread, while training continues. Rank 0
gathers sizes and digests, renames the folder and writes the manifest. A failure before the manifest leaves the last
complete checkpoint as it was and removes the partial folder.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from dapt_contract.base import Contract
from dapt_contract.checkpoint import CHECKPOINT_SCHEMA, CheckpointManifest, FileEntry
from dapt_contract.envelope import fsync_folder, write_envelope
from dapt_contract.measure import SidePerplexity
from dapt_contract.sentences import shortened
from dapt_contract.untrusted.folders import paths_below, remove_folder
from dapt_trainer.checkpoints.inventory import PARTIAL_SUFFIX, StoredCheckpoint
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InfrastructureError, StageEnded
from dapt_trainer.staged_files import StagedFiles

_THREADS = 4


class WrittenFiles(Contract):
    """Reports what one rank has written of a save."""

    files: tuple[FileEntry, ...] = ()
    problem: str | None = None
    """What went wrong; None when all files are on disk."""


@dataclass(frozen=True)
class PendingSave:
    """Holds a save whose files are still being written."""

    completion: Future[StoredCheckpoint]
    size_bytes: int
    """Of all ranks' files."""
    readings: tuple[SidePerplexity, SidePerplexity] | None = None
    """Perplexities of domain and general text; None until they are measured."""


@dataclass(frozen=True)
class SaveResult:
    """Holds what rank 0 made of a save: a checkpoint, or what went wrong."""

    stored: StoredCheckpoint | None = None
    problem: str = ""


SAVE_RESULT: TypeAdapter[SaveResult] = TypeAdapter(SaveResult)
"""How rank 0 sends it."""
_WRITTEN: TypeAdapter[WrittenFiles] = TypeAdapter(WrittenFiles)


def begin(folder: Path) -> None:
    """Create the partial folder of a checkpoint; rank 0 calls it before any rank writes.

    Raises:
        OSError: the volume is full or gone.
    """
    # Left from a save that did not get as far as its manifest: neither is a checkpoint.
    remove_folder(partial_of(folder))
    remove_folder(folder)
    partial_of(folder).mkdir(parents=True)


def write_all(
    staged: StagedFiles, folder: Path, ranks: Ranks, *, last_complete: str
) -> tuple[FileEntry, ...]:
    """Write each rank's staged files to the partial folder of `folder`; return all ranks' files in the order of paths.

    All ranks call it, each with what it has staged.

    Raises:
        InfrastructureError: some rank could not write (disk full, volume gone); the same on every rank.
    """
    # A rank that cannot write must say so instead of raising: its peers wait for it.
    try:
        written = WrittenFiles(files=staged.write(partial_of(folder)))
    except Exception as error:  # torch raises its own kinds for a full disk
        written = WrittenFiles(problem=_problem_of(error, folder))
    every = ranks.gather(written, _WRITTEN)
    problem = next((rank.problem for rank in every if rank.problem), None)
    if problem is not None:
        if ranks.is_first:
            remove_folder(partial_of(folder))
        raise InfrastructureError(with_advice(problem, folder, last_complete))
    return tuple(sorted((file for rank in every for file in rank.files), key=lambda file: file.path))


def complete(folder: Path) -> None:
    """Give the partial folder its final name, once all files are on disk.

    Raises:
        OSError: the volume is full or gone.
    """
    partial = partial_of(folder)
    fsync_folders(partial)
    # After the content is on disk, or a power cut could leave a complete name on incomplete files.
    partial.rename(folder)
    fsync_folder(folder.parent)


def partial_of(folder: Path) -> Path:
    """Return the folder of a checkpoint until it is complete."""
    return folder.with_name(folder.name + PARTIAL_SUFFIX)


@contextlib.contextmanager
def failing_cleanly(folder: Path, last_complete: str) -> Iterator[None]:
    """Turn any failure of the block into one message, and remove the partial folder.

    Args:
        folder: final path of the checkpoint.
        last_complete: says in the message which checkpoint is the last complete one.

    Raises:
        InfrastructureError: in place of any exception that is not one of the stage's own.
    """
    try:
        yield
    except StageEnded:
        raise
    except Exception as error:  # torch and safetensors raise their own kinds for a full disk
        # Before the partial folder is removed: that is what was free when the save failed.
        problem = _problem_of(error, folder)
        remove_folder(partial_of(folder))
        raise InfrastructureError(with_advice(problem, folder, last_complete)) from error


def _problem_of(error: Exception, folder: Path) -> str:
    free_bytes = shutil.disk_usage(folder.parent if folder.parent.exists() else Path("/")).free
    reason = shortened(" ".join(str(error).split()), 200) or type(error).__name__
    return f"{reason} ({free_bytes / 2**20:.0f} MiB were free on the work volume)"


def with_advice(problem: str, folder: Path, last_complete: str) -> str:
    """Return the message about a checkpoint that could not be saved."""
    return (
        f"{folder.name} could not be saved: {problem}; {last_complete}; enlarge the volume or keep fewer checkpoints, "
        "and the next run continues from there"
    )


def fsync_folders(root: Path) -> None:
    """Flush the names of all files below `root` to disk."""
    for path in reversed([path for path in paths_below(root) if path.is_dir()]):
        fsync_folder(path)
    fsync_folder(root)


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Return every file below a folder with its size and SHA-256, in the order of paths."""
    paths = [path for path in paths_below(folder) if path.is_file()]
    # Threads are enough: hashlib releases the interpreter's lock while it hashes.
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(sha256_of_file, paths))
    return tuple(
        FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=digest)
        for path, digest in zip(paths, digests, strict=True)
    )


def write_manifest(
    path: Path, manifest: CheckpointManifest, *, key: bytes, run_key: str
) -> CheckpointManifest:
    """Sign and write a manifest, from which moment the checkpoint exists, and return the signed manifest.

    Raises:
        OSError: the volume is full or read-only; the checkpoint does not exist then.
    """
    signed = manifest.signed(key)
    write_envelope(path, CHECKPOINT_SCHEMA, signed, run_key=run_key)
    return signed
