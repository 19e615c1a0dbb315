"""Polls the running stages of a local run for live readings, in a thread so that no slow answer delays a reconcile."""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from dapt_contract.pod.progress import Progress
from dapt_operator.cluster.progress_reading import MAX_READING_BYTES, PROGRESS_PATH, is_encoded, parse_reading

_TIMEOUT_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 2.0
"""Longest time of a whole answer."""
_MAX_ANSWER_BYTES: Final = MAX_READING_BYTES + 64 * 1024
"""With its headers."""
_INTERVAL_SECONDS: Final = 1.0


@dataclass(frozen=True)
class ProgressTarget:
    """Where a running Job serves its readings."""

    port: int
    run: str
    """First digits of the run key that the readings must carry."""


class LocalProgress:
    """Polls every running stage once a second; keeps the last reading of each."""

    def __init__(self, targets: Callable[[], Mapping[str, ProgressTarget]]) -> None:
        """`targets` returns what to poll now, by Job name."""
        self._targets = targets
        self._latest: dict[str, Progress] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll_until_stopped, name="progress", daemon=True)
        self._thread.start()

    def latest(self) -> dict[str, Progress]:
        """Return the last reading of every stage that runs, by Job name."""
        running = self._targets()
        # A copy, because the polling thread adds to the dictionary meanwhile.
        return {name: reading for name, reading in dict(self._latest).items() if name in running}

    def close(self) -> None:
        """Stop polling."""
        self._stopped.set()
        self._thread.join(timeout=2 * _TIMEOUT_SECONDS)

    def _poll_until_stopped(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            for name, target in self._targets().items():
                reading = fetch(target)
                if reading is not None:
                    self._latest[name] = reading


def fetch(target: ProgressTarget) -> Progress | None:
    """Return a reading; None when no process answers in time or the answer is no reading of this run."""
    request = f"GET {PROGRESS_PATH} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept-Encoding: identity\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", target.port), timeout=_TIMEOUT_SECONDS) as connection:
            connection.sendall(request.encode())
            received = _received(connection)
        answer = http.client.HTTPResponse(_Received(received), method="GET")  # type: ignore[arg-type]
        answer.begin()
        if answer.status != 200 or is_encoded(answer.getheader("Content-Encoding")):
            return None
        # One byte more than a reading may have tells a longer answer from one that just fits.
        return parse_reading(answer.read(MAX_READING_BYTES + 1), target.run)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _received(connection: socket.socket) -> bytes:
    """Return the answer, or as much of it as came in time and within bounds.

    As a whole, before it is parsed: http.client would read parts of an answer that never end, as long as they come.
    """
    end = time.monotonic() + ANSWER_SECONDS
    content = b""
    while len(content) <= _MAX_ANSWER_BYTES and (left := end - time.monotonic()) > 0:
        connection.settimeout(min(left, _TIMEOUT_SECONDS))
        try:
            part = connection.recv(_MAX_ANSWER_BYTES)
        except TimeoutError:
            break
        if not part:
            break
        content += part
    return content


@dataclass(frozen=True)
class _Received:
    """Stands for the socket of an answer that was received."""

    content: bytes

    def makefile(self, _mode: str) -> io.BytesIO:
        """Return what http.client reads from."""
        return io.BytesIO(self.content)
