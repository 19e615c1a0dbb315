"""Watches the ranks of a pod from a thread of the agent: hangs, failures of peers, stop requests.

It is a thread because the main thread waits inside torch's launcher. It learns the ranks' process ids from their
heartbeats and kills ranks; a killed rank cannot write its outcome, so the agent takes it from here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_trainer.linux import is_alive
from dapt_trainer.pod.heartbeat import Heartbeat, read_heartbeat, stacks_path
from dapt_trainer.pod.log_lines import write_line
from dapt_trainer.pod.outcome import RankOutcome, read_outcome
from dapt_trainer.pod.settings import PodSettings

PEER_SECONDS = 2.0
"""Time for the peers of a failed rank to write their outcomes; their collectives never return without that rank."""
LINGER_SECONDS = 30.0
"""Time between a rank's outcome and the end of its process; the teardown of a network library may hang."""
STACKS_SECONDS = 5.0
"""Longest time for ranks to write their stacks."""
_INTERVAL_SECONDS = 0.1


class Watch:
    """Watches from `start` to `close`; `killed` holds the outcome of each rank that it killed."""

    def __init__(self, settings: PodSettings, on_idle_stop: Callable[[], None]) -> None:
        self._settings = settings
        self._on_idle_stop = on_idle_stop
        """Called at a stop request before any rank runs; does not return."""
        self._stop_at: float | None = None
        self._failed_at: float | None = None
        self._signalled: set[int] = set()
        """Ranks to which the stop request was forwarded."""
        self._ended_at: dict[int, float] = {}
        self._closed = threading.Event()
        self.killed: dict[int, RankOutcome] = {}
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)

    def start(self) -> None:
        """Take over SIGTERM and SIGINT and start the thread; call it from the main thread."""
        # Handlers that do nothing: by default the signal would end the process, and an ignored one writes nothing to
        # the pipe.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        # Python runs its handlers between bytecodes of the main thread, which may wait in C for its peers for
        # minutes. The C handler writes to this pipe at once, so the thread sees a stop request in time.
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread.start()

    def close(self) -> None:
        """Stop watching, once the ranks have ended."""
        self._closed.set()
        self._thread.join(timeout=5)
        signal.set_wakeup_fd(-1)

    @property
    def stop_requested(self) -> bool:
        """Return whether the pod received SIGTERM or SIGINT."""
        return self._stop_at is not None

    def _loop(self) -> None:
        while not self._closed.wait(_INTERVAL_SECONDS):
            with contextlib.suppress(OSError):
                self._check(time.monotonic())

    def _check(self, now: float) -> None:
        self._read_signals(now)
        ranks = self._settings.local_ranks
        beats = {rank: beat for rank in ranks if (beat := read_heartbeat(self._settings.ranks_folder, rank))}
        outcomes = {rank: out for rank in ranks if (out := read_outcome(self._settings.ranks_folder, rank))}
        alive = {rank: beat for rank, beat in beats.items() if is_alive(beat.pid)}
        if self._stop_at is not None:
            if not beats:
                self._on_idle_stop()
            self._stop(now, self._stop_at, alive)
        for rank in outcomes:
            self._ended_at.setdefault(rank, now)
        failed = [
            rank
            for rank in beats
            if (rank in outcomes and outcomes[rank].exit_code not in (ExitCode.DONE, ExitCode.STOPPED))
            or (rank not in outcomes and rank not in alive)
        ]
        if failed:
            self._failed_at = self._failed_at or now
            # Not at once: a peer that fails for a reason of its own (a bad record) still reports it.
            if now > self._failed_at + PEER_SECONDS:
                for rank, beat in alive.items():
                    self._kill(rank, beat, None)
        # After a stop request the grace period is the only limit.
        elif self._stop_at is None:
            self._kill_hung(now, beats, alive, outcomes)
        for rank, beat in alive.items():
            if rank in self._ended_at and now > self._ended_at[rank] + LINGER_SECONDS:
                self._kill(rank, beat, None)

    def _read_signals(self, now: float) -> None:
        try:
            numbers = os.read(self._reader, 4096)
        except BlockingIOError:
            return
        if self._stop_at is None and {signal.SIGTERM, signal.SIGINT} & set(numbers):
            self._stop_at = now

    def _stop(self, now: float, stop_at: float, alive: dict[int, Heartbeat]) -> None:
        """Forward the stop request to ranks that have not had it; kill those that outlast the grace period."""
        for rank, beat in alive.items():
            if rank not in self._signalled:
                self._signalled.add(rank)
                _signal(beat.pid, signal.SIGTERM)
        limit = self._settings.shutdown_seconds
        if now > stop_at + limit:
            for rank, beat in alive.items():
                message = (
                    f"rank {rank} did not stop within {limit:.0f} s of SIGTERM; the next run continues from the last "
                    "checkpoint"
                )
                self._kill(rank, beat, _outcome(rank, ExitCode.STOPPED, Cause.STOPPED, message))

    def _kill_hung(
        self,
        now: float,
        beats: dict[int, Heartbeat],
        alive: dict[int, Heartbeat],
        outcomes: dict[int, RankOutcome],
    ) -> None:
        """Kill all ranks when one is silent for longer than its limit."""
        settings = self._settings
        if not beats:
            return  # torch's rendezvous has a limit of its own, and its message has more detail
        for rank, beat in alive.items():
            limit = beat.hang_limit_seconds(settings.startup_timeout_seconds, settings.hang_floor_seconds)
            silent = now - beat.at
            if rank in outcomes or silent <= limit:
                continue
            position = "after its last step" if beat.stepped else "before its first step"
            message = (
                f"rank {rank} sent no heartbeat for {silent:.0f} s {position} (limit {limit:.0f} s) and counts as hung;"
                " the log has the stacks of all ranks"
            )
            write_line(message)
            self._print_stacks(alive)
            for other_rank, other in alive.items():
                is_hung = other_rank == rank
                outcome = _outcome(rank, ExitCode.INFRASTRUCTURE, Cause.HANG, message) if is_hung else None
                self._kill(other_rank, other, outcome)
            return

    def _print_stacks(self, alive: dict[int, Heartbeat]) -> None:
        """Print the stacks of all ranks, one rank after the other."""
        for beat in alive.values():
            _signal(beat.pid, signal.SIGUSR1)
        end, before = time.monotonic() + STACKS_SECONDS, dict.fromkeys(alive, "")
        # faulthandler writes piecemeal and says nothing when it is done: complete is what no longer grows.
        while time.monotonic() < end:
            time.sleep(2 * _INTERVAL_SECONDS)
            now = {rank: _read_text(stacks_path(self._settings.ranks_folder, rank)) for rank in alive}
            is_complete = all(now.values()) and now == before
            before = now
            if is_complete:
                break
        for rank, text in before.items():
            write_line(f"stacks of rank {rank}:\n{text or '  (none written)'}")

    def _kill(self, rank: int, beat: Heartbeat, outcome: RankOutcome | None) -> None:
        """Kill a rank; `outcome` None: the failure is a peer's."""
        if rank not in self.killed:
            self.killed[rank] = outcome or RankOutcome(rank=rank)
        _signal(beat.pid, signal.SIGKILL)


def _outcome(rank: int, code: ExitCode, cause: Cause, message: str) -> RankOutcome:
    return RankOutcome(rank=rank, exit_code=code, cause=cause, problems=(message,))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
