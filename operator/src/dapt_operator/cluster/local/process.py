"""One process standing for one pod: started, signalled, reaped with everything it left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from dapt_operator.cluster.local.pod_to_process import POD_MARKER, Launch

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class PodProcess:
    """A running process group.

    The kernel kills it when the thread that started it ends, so that a killed `dapt run` leaves nothing behind: start
    processes from a thread that lives as long as the run.
    """

    def __init__(self, launch: Launch, log: Path) -> None:
        """Start the process; its output is appended to `log`.

        Raises:
            OSError: the command cannot be started.
        """
        self._marker = f"{POD_MARKER}={launch.environment[POD_MARKER]}"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.ended_at: datetime | None = None
        """When the process ended, before anything was cleaned up."""
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(137)

        with log.open("ab") as output:
            self._process = subprocess.Popen(
                launch.command,
                env=dict(launch.environment),
                cwd=launch.environment[POD_MARKER],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also that of its group."""
        return self._process.pid

    def wait(self) -> int:
        """Wait for the end, then kill what the process left behind; returns the exit code as a container has it."""
        code = self._process.wait()
        self.ended_at = datetime.now(UTC)
        self._kill_group()
        kill_marked(self._marker)
        return 128 - code if code < 0 else code

    def terminate(self) -> None:
        """Ask it to stop."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its group."""
        self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def kill_marked(marker: str, *, timeout_seconds: float = 5.0) -> int:
    """Kill every process that carries `NAME=value` in its environment, and wait until they are gone.

    Ranks have sessions of their own, so no group reaches them all. Returns how many were found.
    """
    found = 0
    end = time.monotonic() + timeout_seconds
    while pids := list(_marked(marker.encode())):
        found += len(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return found


def _marked(marker: bytes) -> Iterator[int]:
    own = os.getpid()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # ended meanwhile, or another user's
        if marker in environment.split(b"\0"):
            yield int(entry.name)
