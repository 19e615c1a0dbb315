"""Defines what every stage program receives alongside its configuration."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dapt_contract.layout import try_folder
from dapt_contract.pod.environment import DEFAULT_VOLUME_BYTES_PER_SECOND
from dapt_contract.pod.preflight import PreflightBounds, PreflightReading
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import CheckpointFacts


@dataclass(frozen=True)
class RankPace:
    """Holds what one rank took for an optimizer step before it met its peers, as a mean over some steps."""

    rank: int
    node: str
    data_wait_seconds: float
    forward_seconds: float
    """Of all forward passes of the step."""


ReadingValue = (
    float | int | str | tuple[CheckpointFacts, ...] | tuple[RankPace, ...] | PreflightReading | None
)
"""Types that a field of a live reading may have."""


class ProgressBoard(Protocol):
    """Shows rank 0's live readings and carries every rank's heartbeat; tests pass a silent one."""

    def update(self, **fields: ReadingValue) -> None:
        """Set fields of `dapt_contract.pod.progress.Progress`; also counts as a heartbeat."""
        ...

    def heartbeat(self) -> None:
        """Report that this rank is making progress; call it at least once a step, batch or file."""
        ...

    def stop_requested(self) -> bool:
        """Return whether this rank received SIGTERM. Stages of several ranks reduce it over all ranks at each step."""
        ...


@dataclass(frozen=True)
class PreflightSettings:
    """Holds what a preflight must know of the pod."""

    bounds: PreflightBounds
    ranks_per_node: int
    node_name: str
    """Name of this node, for messages."""


@dataclass(frozen=True)
class StageContext:
    """Holds where a run may read and write, and which of its ranks this process is."""

    stage: StageFile
    work: Path
    """Root of the work volume; `dapt_contract.layout` has the paths below it."""
    scratch: Path
    """Folder for temporary files of this pod."""
    progress: ProgressBoard
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    signing_key: bytes = b""
    """Key that signs checkpoint manifests; empty only for stages that write none."""
    volume_bytes_per_second: float = DEFAULT_VOLUME_BYTES_PER_SECOND
    """What this node reads from, or writes to, the work volume at least."""
    preflight: PreflightSettings | None = None
    """None: the stage starts without a preflight."""

    @property
    def try_folder(self) -> Path:
        """Return the only folder of the work volume below which this run writes its own files."""
        return self.work / try_folder(self.stage.run)

    def keep_alive(self, num_bytes: int = 0) -> AbstractContextManager[None]:
        """Send heartbeats while the block reads or writes so many bytes of the work volume; see `keep_alive`.

        Hashing and loading read a file twice, so twice the time of the bytes is added to the usual limit.
        """
        seconds = 2 * num_bytes / self.volume_bytes_per_second
        return keep_alive(self.progress, longest_seconds=LONGEST_CALL_SECONDS + seconds)


class SilentProgress:
    """Implements `ProgressBoard` by ignoring every call."""

    def update(self, **fields: ReadingValue) -> None:
        """Ignore the reading."""

    def heartbeat(self) -> None:
        """Ignore the heartbeat."""

    def stop_requested(self) -> bool:
        """Return False."""
        return False


_INTERVAL_SECONDS = 2.0
LONGEST_CALL_SECONDS = 1800.0
"""After half an hour in one call the heartbeats end, and the agent's hang limit decides. `StageContext.keep_alive` adds
the time that the bytes of a call take."""


@contextlib.contextmanager
def keep_alive(progress: ProgressBoard, *, longest_seconds: float = LONGEST_CALL_SECONDS) -> Iterator[None]:
    """Send heartbeats from a thread while the block runs, for at most `longest_seconds`.

    For single calls into libraries that take longer than the agent's hang limit, such as loading or saving a model.
    """
    done = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        # The limit keeps a call that hangs (a dead network volume) from looking alive for ever.
        while not done.wait(_INTERVAL_SECONDS) and time.monotonic() - started < longest_seconds:
            progress.heartbeat()

    thread = threading.Thread(target=beat, name="keep-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
