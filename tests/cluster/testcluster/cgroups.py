"""A control group of the node's own, so that it neither meets nor leaves anything of another kubelet; v1 and v2."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PATIENCE_SECONDS = 10.0
CONTROLLERS = {"cpu", "cpuset", "memory", "pids"}
"""Of version 2: what a kubelet insists on."""


PREFIX = "dapt-node-"
"""Of a group's name; the rest is the process id of its owner."""


@contextlib.contextmanager
def cgroup() -> Iterator[str]:
    """A group in each hierarchy, by its name; removed with all groups below it. Those of dead owners go as well.

    Raises:
        OSError: this process may not make groups.
    """
    name = f"{PREFIX}{os.getpid()}"
    for hierarchy in _hierarchies():
        for left in hierarchy.glob(f"{PREFIX}*"):
            if not Path(f"/proc/{left.name.removeprefix(PREFIX)}").exists():
                _remove(left)
        _make(hierarchy, hierarchy / name)
    try:
        yield name
    finally:
        for hierarchy in _hierarchies():
            _remove(hierarchy / name)


def hindrance() -> str:
    """Why no kubelet can make groups here, in a few words; empty when one can."""
    try:
        with cgroup() as name:
            if not _is_unified():
                return ""
            lacking = CONTROLLERS - set((ROOT / name / "cgroup.controllers").read_text().split())
            return f"the controllers {', '.join(sorted(lacking))} are not handed down" if lacking else ""
    except OSError as error:
        return f"no control group can be made: {error}"


def processes_below(name: str, part: str) -> tuple[int, ...]:
    """Process ids in those groups below `name` whose path contains `part` (a pod's uid, say)."""
    found: set[int] = set()
    for hierarchy in _hierarchies():
        for file in (hierarchy / name).rglob("cgroup.procs"):
            if part in str(file.parent):
                with contextlib.suppress(OSError):
                    found |= {int(line) for line in file.read_text().split()}
    return tuple(sorted(found))


def _is_unified() -> bool:
    return (ROOT / "cgroup.controllers").is_file()


def _hierarchies() -> list[Path]:
    if _is_unified():
        return [ROOT]
    return [it for it in sorted(ROOT.iterdir()) if it.is_dir() and not it.is_symlink()]


def _make(parent: Path, group: Path) -> None:
    if (parent / "cgroup.controllers").is_file():
        for controller in (parent / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):  # one that the kernel gives to nobody
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
    group.mkdir()
    for setting in ("cpuset.cpus", "cpuset.mems"):
        # Version 1 starts a group without any processor, and no process can join it so.
        if (group / setting).is_file() and not _is_unified():
            (group / setting).write_text((parent / setting).read_text())


def _remove(group: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while group.is_dir():
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):  # the dead leave it a moment later
                os.rmdir(folder)
        if time.monotonic() > end:
            raise OSError(f"control group {group} is still in use")
        time.sleep(0.02)
