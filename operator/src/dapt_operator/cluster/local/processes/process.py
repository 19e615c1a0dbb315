"""Runs one process in place of one pod: starts it, signals it, reaps it with all processes that it left behind."""

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
from typing import Final

from dapt_operator.cluster.local.processes.pod_to_process import POD_MARKER, Launch

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


class PodProcess:
    """A running process group.

    The kernel kills it when the thread that started it ends, so that a killed `dapt run` leaves no process.
    Start processes from a thread that lives as long as the run.
    """

    def __init__(self, launch: Launch, log: Path) -> None:
        """Start the process; its output is appended to `log`.

        Raises:
            OSError: the command cannot be started.
        """
        self._marker = f"{POD_MARKER}={launch.environment[POD_MARKER]}"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.ended_at: datetime | None = None
        """When the process ended; the clean-up after it does not count."""
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            # The parent may have ended between the fork and prctl: then the kernel sends no signal.
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
        """Process id, which is also the id of its group."""
        return self._process.pid

    def wait(self) -> int:
        """Wait for the end, then kill the processes left behind; return the exit code as a container reports it."""
        code = self._process.wait()
        self.ended_at = datetime.now(UTC)
        self.kill()
        kill_marked(self._marker)
        # Popen gives minus the signal, a container 128 plus the signal.
        return 128 - code if code < 0 else code

    def terminate(self) -> None:
        """Send SIGTERM."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def kill_marked(marker: str, *, timeout_seconds: float = 5.0) -> int:
    """Kill every process that has `NAME=value` in its environment, wait until they are gone, and return their number.

    Ranks have sessions of their own, so no process group contains them all.
    """
    killed: set[int] = set()
    end = time.monotonic() + timeout_seconds
    # Until none is found: a process may start another one while the list is made. A process that ends has no
    # environment any more a moment before it is gone.
    while (pids := list(_marked(marker.encode()))) or not all(map(_is_gone, killed)):
        killed.update(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return len(killed)


def _is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have read its end yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _marked(marker: bytes) -> Iterator[int]:
    own = os.getpid()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == own:
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or belongs to another user
        if marker in environment.split(b"\0"):
            yield int(entry.name)
