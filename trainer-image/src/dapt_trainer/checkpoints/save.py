"""Writes checkpoints: partial folder, fsync, rename, manifest last.

`writing` yields the partial folder to all ranks. Once all have written, rank 0 completes it, which needs no other rank
and no accelerator, so that the ranks can measure meanwhile. A failure before the manifest leaves the last complete
checkpoint as it was and removes the partial folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dapt_contract.checkpoint import CHECKPOINT_SCHEMA, CheckpointManifest, FileEntry
from dapt_contract.envelope import fsync_folder, write_envelope
from dapt_contract.sentences import shortened
from dapt_trainer.checkpoints.inventory import PARTIAL_SUFFIX
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.errors import InfrastructureError, StageEnded

_THREADS = 4


@contextlib.contextmanager
def writing(
    folder: Path, *, is_writer: bool, barrier: Callable[[], None], last_complete: str
) -> Iterator[Path]:
    """Yield the partial folder of a checkpoint to all ranks; at the end of the block all ranks have written.

    Args:
        folder: final path of the checkpoint.
        is_writer: whether this is rank 0, which creates the folder and completes it afterwards.
        barrier: waits for all ranks.
        last_complete: says in the message of a failure which checkpoint is the last complete one.

    Raises:
        InfrastructureError: a file could not be written (disk full, volume gone); the partial folder was removed.
    """
    partial = partial_of(folder)
    with failing_cleanly(folder, last_complete):
        if is_writer:
            # Left from a save that did not get as far as its manifest: neither is a checkpoint.
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()  # no rank may write before the folder exists
        yield partial
        barrier()  # rank 0 completes the folder only after the last rank has written


def complete(folder: Path) -> tuple[FileEntry, ...]:
    """Flush the partial folder to disk, rename it to its final name, and return its files with sizes and digests.

    Raises:
        OSError: the volume is full or gone.
    """
    partial = partial_of(folder)
    # The digests need the processor and fsync needs the disk, so both run at once.
    with ThreadPoolExecutor(1) as disk:
        flushed = disk.submit(fsync_tree, partial)
        files = list_files(partial)
        flushed.result()
    # After the content is on disk, or a power cut could leave a complete name on incomplete files.
    partial.rename(folder)
    fsync_folder(folder.parent)
    return files


def partial_of(folder: Path) -> Path:
    """Return the folder of a checkpoint until it is complete."""
    return folder.with_name(folder.name + PARTIAL_SUFFIX)


@contextlib.contextmanager
def failing_cleanly(folder: Path, last_complete: str) -> Iterator[None]:
    """Turn any failure of the block into one message, and remove the partial folder.

    Raises:
        InfrastructureError: in place of any exception that is not one of the stage's own.
    """
    try:
        yield
    except StageEnded:
        raise
    except Exception as error:  # torch and safetensors raise their own kinds for a full disk
        # Before the partial folder is removed: that is what was free when the save failed.
        free_bytes = shutil.disk_usage(folder.parent if folder.parent.exists() else Path("/")).free
        shutil.rmtree(partial_of(folder), ignore_errors=True)
        reason = shortened(" ".join(str(error).split()), 200) or type(error).__name__
        raise InfrastructureError(
            f"{folder.name} could not be saved: {reason} ({free_bytes / 2**20:.0f} MiB were free on the work volume); "
            f"{last_complete}; enlarge the volume or keep fewer checkpoints, and the next run continues from there"
        ) from error


def fsync_tree(root: Path) -> None:
    """Flush every file and folder below `root` to disk."""
    for path in sorted(root.rglob("*"), reverse=True):  # files before the folders that list them
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsync_folder(root)


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Return every file below a folder with its size and SHA-256, in the order of paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
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
