"""Wraps what the agent and the ranks use of Linux: the parent-death signal, memory events, process states."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
PARENT_PID = "DAPT_PARENT_PID"
"""Environment variable in which the agent gives its own pid to its ranks, which must not outlive it."""


def die_with_parent(expected_parent: int | None) -> None:
    """Have the kernel kill this process when its parent dies, so that no rank keeps training without its agent.

    Args:
        expected_parent: pid of the parent; if it has died already, this process exits at once.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the call above; the kernel signals only later deaths.
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(137)


def seconds_since_start(pid: int) -> float | None:
    """Return how long a process has been there; None where it is gone, or the system has no /proc.

    Reads the 22nd field of `/proc/PID/stat`, clock ticks since the boot. The second field is the program's name in
    brackets, which may hold anything.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        ticks = int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def oom_kills() -> int:
    """Return how often the kernel killed a process of this cgroup for memory; 0 where no cgroup v2 counts it.

    Reads `oom_kill` of cgroup v2's `memory.events`.
    """
    for folder in _cgroup_folders():
        try:
            for line in (folder / "memory.events").read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
        except (OSError, ValueError):
            continue
    return 0


def _cgroup_folders() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    try:
        own = [
            line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
        ]
    except OSError:
        own = []
    return [root / path.lstrip("/") for path in own] + [root]


def signal_name(number: int) -> str:
    """Return the name of a signal, for example `SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def limit_processor_time(seconds: int) -> None:
    """Make the kernel end this process (SIGXCPU) once it has used this number of seconds more of processor time."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time()) + seconds
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )
