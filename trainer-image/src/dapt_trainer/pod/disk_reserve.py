"""Reserves a little disk space for the outcome of a run.

The message that a disk is full must still fit on that disk: in a local run, work volume, scratch folder and termination
message share one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

RESERVED_BYTES = 64 * 1024


class Reserve:
    """Holds a file of `RESERVED_BYTES` bytes that is deleted when a write fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with contextlib.suppress(OSError):  # the disk is full already: there is nothing left to reserve
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\1" * RESERVED_BYTES)  # not zeros, which some file systems don't store

    def write(self, write: Callable[[], object]) -> None:
        """Call `write`; if it fails, delete the reserve and call it once more.

        Raises:
            OSError: it failed both times.
        """
        try:
            write()
        except OSError:
            self.release()
            write()

    def release(self) -> None:
        """Delete the file, which frees the space."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
