"""What the agent and the ranks need of Linux: dying with a parent, the cgroup's memory events, names of signals."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
PARENT_PID = "DAPT_PARENT_PID"
"""Set by the agent for its ranks: the process whose death must be theirs."""


def die_with_parent(expected_parent: int | None) -> None:
    """Have the kernel kill this process when its parent dies, so that no rank trains on without its agent.

    Args:
        expected_parent: pid of the parent; when it is gone already, this process ends at once.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(137)


def oom_kills() -> int:
    """How often the kernel killed a process of this cgroup for memory; 0 where nobody counts.

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
    """`SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
