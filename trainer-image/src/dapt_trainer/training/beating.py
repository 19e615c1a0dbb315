"""Heartbeats for work that is one long call into a library: saving a checkpoint, hashing it, merging weights."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from dapt_trainer.context import ProgressBoard

_INTERVAL_SECONDS = 2.0
LONGEST_SAVE_SECONDS = 1800.0
"""After half an hour in one call the beats end, and the agent's hang limit decides."""


@contextlib.contextmanager
def beating(progress: ProgressBoard, *, longest_seconds: float = LONGEST_SAVE_SECONDS) -> Iterator[None]:
    """Beat from a thread while the block runs, at most `longest_seconds` long."""
    done = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        while not done.wait(_INTERVAL_SECONDS) and time.monotonic() - started < longest_seconds:
            progress.heartbeat()

    thread = threading.Thread(target=beat, name="beating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
