"""Measures how fast a node writes to the work volume and reads from it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CHUNK_BYTES = 4 * 2**20
_FREE_SHARE = 0.1
"""Of the free space a test file takes at most so much: a full volume fails at its own checkpoint, not here."""


@dataclass(frozen=True)
class VolumeSpeed:
    """Holds the speeds of one node; None: there was too little free space to measure."""

    write_bytes_per_second: float | None = None
    read_bytes_per_second: float | None = None


def measure_volume(
    folder: Path,
    *,
    most_bytes: int,
    most_seconds: float,
    name: str,
    clock: Callable[[], float] = time.monotonic,
) -> VolumeSpeed:
    """Write a file, read it again, and remove it.

    Args:
        folder: on the volume; it is created.
        most_bytes: size of the file, which is smaller where writing it takes longer than `most_seconds`.
        most_seconds: of writing, and of reading again.
        name: of the file; nodes that measure at the same time need different ones.
        clock: monotonic seconds.

    Raises:
        OSError: the volume cannot be written or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if shutil.disk_usage(folder).free * _FREE_SHARE < most_bytes:
        return VolumeSpeed()
    # Random, since some file systems compress or share what repeats.
    chunk = os.urandom(min(_CHUNK_BYTES, most_bytes))
    try:
        path.unlink(missing_ok=True)  # of a run that was killed here
        # Never through a link that somebody has put there.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            written, write_seconds = _write(descriptor, chunk, most_bytes, most_seconds, clock)
            # A read from the cache says nothing of the volume. Some network file systems ignore this.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            read, read_seconds = _read(descriptor, most_seconds, clock)
        finally:
            os.close(descriptor)
    finally:
        path.unlink(missing_ok=True)
    return VolumeSpeed(written / write_seconds, read / read_seconds)


def _write(
    descriptor: int, chunk: bytes, most_bytes: int, most_seconds: float, clock: Callable[[], float]
) -> tuple[int, float]:
    started, written = clock(), 0
    while written < most_bytes and clock() - started < most_seconds:
        written += os.write(descriptor, chunk)
    # Before that, most of it is in this node's memory.
    os.fsync(descriptor)
    return written, max(clock() - started, 1e-6)


def _read(descriptor: int, most_seconds: float, clock: Callable[[], float]) -> tuple[int, float]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    started, read = clock(), 0
    while clock() - started < most_seconds:
        content = os.read(descriptor, _CHUNK_BYTES)
        if not content:
            break
        read += len(content)
    return read, max(clock() - started, 1e-6)
