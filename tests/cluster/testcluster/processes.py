"""Child processes that never outlive the tests."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

LAST_WORDS_BYTES = 2000
FIRST_PORT, PORT_RANGES, PORTS_IN_A_RANGE = 14_000, 8, 2_000


class StartError(Exception):
    """A component of the test cluster does not come up."""


class Process:
    """A started program with its log file.

    The kernel kills it when the thread that started it ends, so start it from a thread that lives as long.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        """Its stdout and stderr."""
        die_with_us = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*die_with_us, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=None if env is None else os.environ | env,
                start_new_session=True,  # Ctrl-C reaches the tests alone; they stop it in order
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that has ended gets none."""
        with contextlib.suppress(ProcessLookupError):
            if self.is_alive:
                os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        return self._process.wait(seconds)

    def stop(self, seconds: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after so many seconds."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def wait_until(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it answers.

        Raises:
            StartError: it ended, or does not answer within so many seconds; with the end of its log.
        """
        deadline = time.monotonic() + seconds
        while not is_ready():
            if not self.is_alive:
                raise StartError(f"{self.name} ended with {self.exit_code}:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} is not ready after {seconds:g} s:\n{self.last_words()}")
            time.sleep(0.05)


def _ports_of_worker() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST_PORT + worker % PORT_RANGES * PORTS_IN_A_RANGE
    ports = list(range(first, first + PORTS_IN_A_RANGE))
    random.Random().shuffle(ports)  # another order in each process
    return itertools.cycle(ports)


_PORTS = _ports_of_worker()


def free_port(address: str = "127.0.0.1") -> int:
    """A port that no process listens on, below the range from which the kernel takes ports of its own choice.

    Each worker of pytest-xdist has a range of its own: two workers never find the same port free at the same moment.
    Nor is one handed out twice before all others were: who asks for two gets two.
    """
    for port in itertools.islice(_PORTS, PORTS_IN_A_RANGE):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise StartError(f"no free port on {address}")
