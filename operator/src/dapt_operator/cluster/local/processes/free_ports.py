"""Reserves free ports for a run, also when several local runs choose at the same time.

A port is reserved by a lock on a file of its number that all runs of this user share, and it must be free to bind. The
range lies below the one from which Linux assigns ports.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import IO, Final

from dapt_operator.cluster.local.errors import LocalRunError

_RANGE: Final = range(20_000, 32_000)
_MAX_CANDIDATES: Final = 500


class PortReservation:
    """Holds some ports until `release`."""

    def __init__(self, count: int) -> None:
        """Reserve ports.

        Raises:
            LocalRunError: none are free.
        """
        self._locks: list[IO[bytes]] = []
        self.ports: list[int] = []
        folder = Path(tempfile.gettempdir()) / f"dapt-ports-{os.getuid()}"
        # One folder a user: lock files of another user could not be opened.
        folder.mkdir(mode=0o700, exist_ok=True)
        # At random: two runs that start at once would else try the same ports in the same order.
        for port in random.sample(_RANGE, _MAX_CANDIDATES):
            if len(self.ports) == count:
                return
            lock = (folder / str(port)).open("ab")
            # Both: a run binds its ports only when its processes start, and other programs know nothing of the lock.
            if _has_locked(lock) and _can_bind(port):
                self._locks.append(lock)
                self.ports.append(port)
            else:
                lock.close()
        if len(self.ports) < count:
            self.release()
            raise LocalRunError(
                f"no {count} free ports between {_RANGE.start} and {_RANGE.stop} on this machine"
            )

    def release(self) -> None:
        """Release the ports."""
        for lock in self._locks:
            lock.close()
        self._locks.clear()


def _has_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        # Without it a port counts as taken while old connections of it are in TIME_WAIT.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
