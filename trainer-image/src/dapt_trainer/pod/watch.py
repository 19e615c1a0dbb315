"""The agent's watch over its ranks: silence, failures of peers, the request to stop.

A thread, since the main thread waits inside torch's launcher. It learns the ranks' process ids from their heartbeats
and kills; what it killed and why is the agent's to tell, the ranks themselves cannot.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dapt_contract.failure import Cause, ExitCode
from dapt_trainer.linux import is_alive
from dapt_trainer.pod.heartbeat import Heartbeat, read_heartbeat, stacks_path
from dapt_trainer.pod.outcome import RankOutcome, read_outcome
from dapt_trainer.pod.settings import PodSettings

PEER_SECONDS = 2.0
"""What peers of a failed rank get to say how they end; a collective never comes back without it."""
LINGER_SECONDS = 30.0
"""What a rank gets between its outcome and its end; teardown of a network library may hang."""
STACKS_SECONDS = 5.0
"""What ranks get at most to write down their stacks."""
_INTERVAL_SECONDS = 0.1


class Watch:
    """Watches from `start` to `close`. `killed` holds the outcome of each rank that was killed here."""

    def __init__(self, settings: PodSettings, on_idle_stop: Callable[[], None]) -> None:
        self._settings = settings
        self._on_idle_stop = on_idle_stop
        """Called when asked to stop before any rank runs; does not return."""
        self._started = time.monotonic()
        self._stop_at: float | None = None
        self._failed_at: float | None = None
        self._told: set[int] = set()
        self._ended: dict[int, float] = {}
        self._over = threading.Event()
        self.killed: dict[int, RankOutcome] = {}
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)

    def start(self) -> None:
        """Take SIGTERM and begin; from the main thread.

        The wake-up pipe is written by the C handler, so that a stop is seen while the main thread waits in C for
        its peers.
        """
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread.start()

    def close(self) -> None:
        """End the watch; the ranks have ended."""
        self._over.set()
        self._thread.join(timeout=5)
        signal.set_wakeup_fd(-1)

    @property
    def stop_requested(self) -> bool:
        """Whether SIGTERM came."""
        return self._stop_at is not None

    def _loop(self) -> None:
        while not self._over.wait(_INTERVAL_SECONDS):
            with contextlib.suppress(OSError):
                self._look(time.monotonic())

    def _look(self, now: float) -> None:
        self._read_signals(now)
        ranks = self._settings.local_ranks
        beats = {rank: beat for rank in ranks if (beat := read_heartbeat(self._settings.ranks_folder, rank))}
        outcomes = {rank: out for rank in ranks if (out := read_outcome(self._settings.ranks_folder, rank))}
        alive = {rank: beat for rank, beat in beats.items() if is_alive(beat.pid)}
        if self._stop_at is not None:
            self._stop(now, alive, bool(beats))
        for rank in outcomes:
            self._ended.setdefault(rank, now)
        broken = [
            rank
            for rank in beats
            if (rank in outcomes and outcomes[rank].exit_code not in (ExitCode.DONE, ExitCode.STOPPED))
            or (rank not in outcomes and rank not in alive)
        ]
        if broken:
            self._failed_at = self._failed_at or now
            if now > self._failed_at + PEER_SECONDS:
                for rank, beat in alive.items():
                    self._kill(rank, beat, None)
        elif self._stop_at is None:
            self._find_hang(now, beats, alive, outcomes)
        for rank, beat in alive.items():
            if rank in self._ended and now > self._ended[rank] + LINGER_SECONDS:
                self._kill(rank, beat, None)

    def _read_signals(self, now: float) -> None:
        try:
            numbers = os.read(self._reader, 4096)
        except BlockingIOError:
            return
        if self._stop_at is None and {signal.SIGTERM, signal.SIGINT} & set(numbers):
            self._stop_at = now

    def _stop(self, now: float, alive: dict[int, Heartbeat], any_started: bool) -> None:
        assert self._stop_at is not None
        if not any_started:
            self._on_idle_stop()
        for rank, beat in alive.items():
            if rank not in self._told:
                self._told.add(rank)
                _signal(beat.pid, signal.SIGTERM)
        limit = self._settings.shutdown_seconds
        if now > self._stop_at + limit:
            for rank, beat in alive.items():
                sentence = (
                    f"rank {rank} was asked to stop and did not within {limit:.0f} s; the next try goes on from the "
                    "last checkpoint"
                )
                self._kill(rank, beat, _outcome(rank, ExitCode.STOPPED, Cause.STOPPED, sentence))

    def _find_hang(
        self,
        now: float,
        beats: dict[int, Heartbeat],
        alive: dict[int, Heartbeat],
        outcomes: dict[int, RankOutcome],
    ) -> None:
        settings = self._settings
        if not beats:
            return  # torch's rendezvous has its own limit, and says more
        for rank, beat in alive.items():
            limit = beat.hang_limit_seconds(settings.startup_timeout_seconds, settings.hang_floor_seconds)
            silent = now - beat.at
            if rank in outcomes or silent <= limit:
                continue
            doing = "after its last step" if beat.stepped else "before its first step"
            sentence = (
                f"rank {rank} was silent for {silent:.0f} s {doing} (limit {limit:.0f} s) and counts as hung; the log "
                "has the stacks of all ranks"
            )
            print(f"dapt: {sentence}", flush=True)
            self._tell_stacks(alive)
            for other_rank, other in alive.items():
                told = (
                    _outcome(rank, ExitCode.INFRASTRUCTURE, Cause.HANG, sentence)
                    if other_rank == rank
                    else None
                )
                self._kill(other_rank, other, told)
            return

    def _tell_stacks(self, alive: dict[int, Heartbeat]) -> None:
        """Print the stacks of all ranks, one after the other."""
        for beat in alive.values():
            _signal(beat.pid, signal.SIGUSR1)
        end, before = time.monotonic() + STACKS_SECONDS, dict.fromkeys(alive, "")
        while time.monotonic() < end:
            time.sleep(2 * _INTERVAL_SECONDS)
            now = {rank: _read_text(stacks_path(self._settings.ranks_folder, rank)) for rank in alive}
            complete = all(now.values()) and now == before
            before = now
            if complete:
                break
        for rank, text in before.items():
            print(f"dapt: stacks of rank {rank}:\n{text or '  (it wrote none)'}", flush=True)

    def _kill(self, rank: int, beat: Heartbeat, outcome: RankOutcome | None) -> None:
        """Kill a rank; `outcome` None: it only shares its peers' fate."""
        if rank not in self.killed:
            self.killed[rank] = outcome or RankOutcome(rank=rank)
        _signal(beat.pid, signal.SIGKILL)


def _outcome(rank: int, code: ExitCode, cause: Cause, sentence: str) -> RankOutcome:
    return RankOutcome(rank=rank, exit_code=code, cause=cause, problems=(sentence,))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
