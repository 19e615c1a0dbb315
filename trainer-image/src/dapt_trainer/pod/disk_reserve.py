"""A little disk space put aside for last words.

When a disk is full, the sentence that says so must still fit on it: locally, work volume, scratch and termination
message share one disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

RESERVED_BYTES = 64 * 1024


class Reserve:
    """A file of `RESERVED_BYTES` bytes that is given up when a write fails."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with contextlib.suppress(OSError):  # as full as that already: then there is nothing to put aside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\1" * RESERVED_BYTES)  # not zeros, which some file systems don't store

    def write(self, write: Callable[[], object]) -> None:
        """Call `write`, and once more without the reserve when it fails.

        Raises:
            OSError: it failed both times.
        """
        try:
            write()
        except OSError:
            self.release()
            write()

    def release(self) -> None:
        """Give the space back."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
