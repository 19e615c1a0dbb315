"""Writing checkpoints: partial folder, fsync, rename, manifest last.

`writing` yields the partial folder to all ranks. Once all have written, rank 0 completes it, which needs no other rank
and no accelerator, so that the ranks can measure meanwhile. Whatever goes wrong before the manifest leaves the last
complete checkpoint as it was, and the partial folder is removed.
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
from dapt_trainer.checkpoints.inventory import PARTIAL_SUFFIX
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.errors import InfrastructureError, StageError

_THREADS = 4


@contextlib.contextmanager
def writing(
    folder: Path, *, is_writer: bool, barrier: Callable[[], None], last_complete: str
) -> Iterator[Path]:
    """The partial folder of a checkpoint, for all ranks to write into; at the end all have.

    Args:
        folder: the checkpoint's final place.
        is_writer: whether this is rank 0, which makes the folder and completes it afterwards.
        barrier: of all ranks.
        last_complete: names the last complete checkpoint in the message of a failure.

    Raises:
        InfrastructureError: a file could not be written (disk full, volume gone); the partial folder was removed.
    """
    partial = partial_of(folder)
    with failing_cleanly(folder, last_complete):
        if is_writer:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        yield partial
        barrier()


def complete(folder: Path) -> tuple[FileEntry, ...]:
    """Make what was written durable and give it its name; every file with its size and digest.

    Raises:
        OSError: the volume is full or gone.
    """
    partial = partial_of(folder)
    # The digests want the processor and not the disk: both at once.
    with ThreadPoolExecutor(1) as disk:
        durable = disk.submit(_fsync_tree, partial)
        files = list_files(partial)
        durable.result()
    partial.rename(folder)
    fsync_folder(folder.parent)
    return files


def partial_of(folder: Path) -> Path:
    """Where a checkpoint lies until it is complete."""
    return folder.with_name(folder.name + PARTIAL_SUFFIX)


@contextlib.contextmanager
def failing_cleanly(folder: Path, last_complete: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one sentence, and the partial folder goes.

    Raises:
        InfrastructureError: in place of anything that is not an error of the stage already.
    """
    try:
        yield
    except StageError:
        raise
    except Exception as error:  # torch and safetensors raise their own kinds for a full disk
        free_bytes = shutil.disk_usage(folder.parent if folder.parent.exists() else Path("/")).free
        shutil.rmtree(partial_of(folder), ignore_errors=True)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InfrastructureError(
            f"{folder.name} could not be saved: {reason} ({free_bytes / 2**20:.0f} MiB were free on the work volume). "
            f"{last_complete}. Make the volume larger or keep fewer checkpoints; the next try goes on from there"
        ) from error


def _fsync_tree(root: Path) -> None:
    """Make every file and folder below `root` durable."""
    for path in sorted(root.rglob("*"), reverse=True):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsync_folder(root)


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below a folder with its size and SHA-256, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(sha256_of_file, paths))
    return tuple(
        FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=digest)
        for path, digest in zip(paths, digests, strict=True)
    )


def write_manifest(
    path: Path, manifest: CheckpointManifest, *, key: bytes, run_key: str
) -> CheckpointManifest:
    """Sign and write a manifest: from here on the checkpoint exists.

    Raises:
        OSError: the volume is full or read-only; the checkpoint does not exist then.
    """
    signed = manifest.signed(key)
    write_envelope(path, CHECKPOINT_SCHEMA, signed, run_key=run_key)
    return signed
