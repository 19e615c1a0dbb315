"""Live readings of the running stages, fetched beside the loop so that no slow answer delays it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from dapt_contract.progress import Progress

_TIMEOUT_SECONDS = 0.5
_INTERVAL_SECONDS = 1.0
_MAX_BYTES = 64 * 1024


class LocalProgress:
    """Asks every running stage once a second; keeps the last answer of each."""

    def __init__(self, targets: Callable[[], Mapping[str, tuple[int, str]]]) -> None:
        """`targets`: Job name -> port and the first digits of the run key that its readings must carry."""
        self._targets = targets
        self._latest: dict[str, Progress] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="readings", daemon=True)
        self._thread.start()

    def latest(self) -> dict[str, Progress]:
        """The last reading of every stage that runs, by Job name."""
        running = self._targets()
        return {name: reading for name, reading in dict(self._latest).items() if name in running}

    def close(self) -> None:
        """Stop asking."""
        self._over.set()
        self._thread.join(timeout=2 * _TIMEOUT_SECONDS)

    def _loop(self) -> None:
        while not self._over.wait(_INTERVAL_SECONDS):
            for name, (port, key) in self._targets().items():
                reading = fetch(port)
                if reading is not None and reading.run_key.startswith(key):
                    self._latest[name] = reading


def fetch(port: int) -> Progress | None:
    """One reading; None when nobody answers in time or what comes is not one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/progress")
        answer = connection.getresponse()
        content = answer.read(_MAX_BYTES + 1)
        if answer.status != 200 or len(content) > _MAX_BYTES:
            return None
        return Progress.model_validate_json(content)
    except (OSError, http.client.HTTPException, ValidationError):
        return None
    finally:
        connection.close()
