"""Ports for the processes that a test starts."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _LAST = 10_000, 32_000
"""Below the range that Linux takes the ports of outgoing connections from."""
_APART = 256
_numbers = itertools.count(os.getpid() * _APART)


def free_port() -> int:
    """Return a port that nothing listens on, and that this process has not returned before.

    Every process searches from a place of its own: a port that the kernel had chosen and that was closed again could
    be given to another process, or to an outgoing connection, before the test's own process listens on it.
    """
    while True:
        port = _FIRST + next(_numbers) % (_LAST - _FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
