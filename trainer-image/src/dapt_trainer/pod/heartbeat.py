"""Writes and reads heartbeats: each rank keeps a small file, from which the agent tells a hang from slow work.

A file holds the time of the last heartbeat, whether the rank has finished a step yet, and the median duration of its
steps, in seconds of the machine's monotonic clock (which all processes of a pod share). A heartbeat costs one small
write to the scratch volume, at most five times a second.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

HANG_FLOOR_SECONDS = 60.0
"""Shortest silence that counts as a hang, however short a rank's steps are."""
HANG_STEPS = 10.0
"""Silence, in median steps, after which a rank counts as hung."""
_MINIMUM_INTERVAL_SECONDS = 0.2
_REMEMBERED_STEPS = 50


@dataclass(frozen=True)
class Heartbeat:
    """Holds the last heartbeat of a rank."""

    rank: int
    pid: int
    at: float
    """Monotonic seconds."""
    stepped: bool
    median_step_seconds: float

    def hang_limit_seconds(self, startup_timeout_seconds: float, floor_seconds: float) -> float:
        """Return how long this rank may stay silent: max(floor, 10 median steps) once it has finished a step."""
        if not self.stepped:
            return startup_timeout_seconds
        return max(floor_seconds, HANG_STEPS * self.median_step_seconds)


def heartbeat_path(folder: Path, rank: int) -> Path:
    """Return the file of one rank's heartbeat."""
    return folder / f"heartbeat-{rank}.json"


def stacks_path(folder: Path, rank: int) -> Path:
    """Return the file into which one rank writes its stacks at SIGUSR1."""
    return folder / f"stacks-{rank}.txt"


def read_heartbeat(folder: Path, rank: int) -> Heartbeat | None:
    """Return a rank's last heartbeat; None before the first."""
    try:
        raw = json.loads(heartbeat_path(folder, rank).read_text())
        return Heartbeat(rank, int(raw["pid"]), float(raw["at"]), bool(raw["stepped"]), float(raw["median"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Heart:
    """Writes the heartbeats of one rank."""

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = heartbeat_path(folder, rank)
        self._pid = os.getpid()  # a forked helper that beats must not pass for the rank
        self._lock = threading.Lock()  # long calls into libraries beat from a thread
        self._written = 0.0
        self._step: int | None = None
        self._step_at = 0.0
        self._step_seconds: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self.beat()

    def beat(self, step: int | None = None) -> None:
        """Report that this rank is making progress; `step` is the optimizer step just finished, if one was.

        Raises:
            OSError: the scratch volume is full.
        """
        with self._lock:
            self._beat(step, time.monotonic())

    def _beat(self, step: int | None, now: float) -> None:
        new_step = step is not None and step != self._step
        if step is not None and new_step:
            if self._step is not None and step > self._step:
                self._step_seconds.append((now - self._step_at) / (step - self._step))
            self._step, self._step_at = step, now
        if not new_step and now - self._written < _MINIMUM_INTERVAL_SECONDS:
            return
        self._written = now
        # The median, which a few slow steps do not move.
        median = statistics.median(self._step_seconds) if self._step_seconds else 0.0
        state = {"pid": self._pid, "at": now, "stepped": self._step is not None, "median": median}
        # Renamed into place: the agent must never read half a file.
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(state))
        temporary.replace(self._path)
