"""Keeps what `dapt run` must know of its earlier invocations for one run folder: how long they took together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from dapt_contract.base import LARGEST_COUNT
from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.untrusted.regular_files import read_regular_file
from dapt_operator.number_format import duration

FILE: Final = "invocations.json"
_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Invocations:
    """All invocations of `dapt run` for one folder, the one that runs included."""

    number: int = 0
    seconds: float = 0.0
    """Together; the time between two invocations does not count."""
    manifest: str = ""
    """Absolute path of the manifest that the newest was given."""

    @property
    def sentence(self) -> str:
        """Return the time of all of them, since only together they made the model."""
        together = f", in {self.number} invocations of dapt run" if self.number > 1 else ""
        return f"took {duration(self.seconds)}{together}"

    def next(self, manifest: Path) -> Invocations:
        """Return what is known once another invocation has begun."""
        return Invocations(self.number + 1, self.seconds, str(manifest.resolve()))

    def after(self, seconds: float) -> Invocations:
        """Return what is known once the newest invocation has taken so long."""
        return replace(self, seconds=self.seconds + seconds)

    def write(self, folder: Path) -> None:
        """Write the file of a run folder.

        Raises:
            OSError: the disk is full.
        """
        write_bytes_atomically(folder / FILE, json.dumps(asdict(self)).encode())


class RunTime:
    """Counts the time of the invocation that runs, and keeps it with that of the earlier ones."""

    def __init__(
        self, folder: Path, invocations: Invocations, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start counting; `invocations` has the one that runs, without its time."""
        self._folder = folder
        self._invocations = invocations
        self._clock = clock
        self._started = clock()

    @property
    def total_seconds(self) -> float:
        """Time of all invocations until now."""
        return self._now.seconds

    @property
    def _now(self) -> Invocations:
        return self._invocations.after(self._clock() - self._started)

    def save(self) -> None:
        """Write the time until now, for the case that this process is killed.

        Raises:
            OSError: the disk is full.
        """
        self._now.write(self._folder)


def read_invocations(folder: Path) -> Invocations:
    """Return what was written last; nothing of a folder without the file, or with a damaged one."""
    try:
        stored = json.loads(read_regular_file(folder / FILE, _MAX_BYTES))
        number, seconds = int(stored["number"]), float(stored["seconds"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return Invocations()
    if not 0 <= number <= LARGEST_COUNT or not 0 <= seconds <= LARGEST_COUNT:
        return Invocations()
    return Invocations(number, seconds, str(stored.get("manifest") or ""))
