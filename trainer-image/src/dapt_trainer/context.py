"""What every stage program gets beside its configuration."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dapt_contract.layout import try_folder
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import CheckpointFacts

Shown = float | int | str | tuple[CheckpointFacts, ...] | None
"""What a field of a live reading may be."""


class ProgressBoard(Protocol):
    """Live readings of rank 0 and the heartbeat of every rank; the worker passes the real one, tests a silent one."""

    def update(self, **fields: Shown) -> None:
        """Set fields of `dapt_contract.progress.Progress`; also a heartbeat."""
        ...

    def heartbeat(self) -> None:
        """This rank is alive and moving; call it at least once a step, batch or file."""
        ...

    def stop_requested(self) -> bool:
        """Whether SIGTERM was seen by this rank. Multi-rank stages reduce it over all ranks at each step."""
        ...


@dataclass(frozen=True)
class StageContext:
    """Where the run may read and write, and who it is among its ranks."""

    stage: StageFile
    work: Path
    """Root of the work volume (dapt_contract.layout has the paths below it)."""
    scratch: Path
    """Temporary files of this pod."""
    progress: ProgressBoard
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    signing_key: bytes = b""
    """Signs checkpoint manifests; empty only for stages that have none."""

    @property
    def try_folder(self) -> Path:
        """The only folder below which this run writes its own things."""
        return self.work / try_folder(self.stage.run)


class SilentProgress:
    """A board that nobody reads."""

    def update(self, **fields: Shown) -> None:
        """Drop the reading."""

    def heartbeat(self) -> None:
        """Nobody waits for it."""

    def stop_requested(self) -> bool:
        """Nobody asks."""
        return False


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
