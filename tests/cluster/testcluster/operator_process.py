"""`dapt operator` as a process of the tests, as a pod would run it."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import sysconfig
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from testcluster.control_plane import ControlPlane
from testcluster.processes import Process
from testcluster.waiting import eventually

DAPT = Path(sysconfig.get_path("scripts")) / "dapt"
_numbers = itertools.count(1)


class OperatorProcess:
    """One run of the operator; a context manager that leaves nothing behind.

    Args:
        plane: its cluster.
        namespaces: looked after; none: all.
        pod: two runs with the same one are the same to the Lease, as a container that starts again in its pod is.
        instance: who it is; by default the first namespace's own, so that tests leave each other alone.
        kubeconfig: the administrator's when not given.
        flags: further ones.
    """

    def __init__(
        self,
        plane: ControlPlane,
        namespaces: Sequence[str] = (),
        *,
        pod: str = "pod-0",
        instance: str = "",
        kubeconfig: Path | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        home = namespaces[0] if namespaces else "default"
        self._command: list[str | Path] = [
            sys.executable,
            DAPT,
            "operator",
            *(f"--namespace={name}" for name in namespaces),
            f"--instance={instance or f'{home}/dapt'}",
            f"--lease-namespace={home}",
            "--port=0",
            "--log-level=debug",
            *flags,
        ]
        self._environment = {"KUBECONFIG": str(kubeconfig or plane.kubeconfig), "POD_UID": pod}
        self._log = plane.folder / f"operator-{next(_numbers)}.log"
        self._process: Process | None = None

    def __enter__(self) -> OperatorProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.is_alive:
            self._process.kill()

    # --- its life ---

    def start(self) -> OperatorProcess:
        """Start it, also again after its end; its log goes on."""
        assert self._process is None or not self._process.is_alive
        self._process = Process("dapt operator", self._command, self._log, self._environment)
        return self

    @property
    def process(self) -> Process:
        """The newest run of it."""
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def terminate(self, seconds: float = 5.0) -> int:
        """SIGTERM, as the kubelet does; the exit code.

        Raises:
            subprocess.TimeoutExpired: it did not end within so many seconds.
        """
        self.process.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    # --- what it says ---

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """Its log lines, of one event if it is named; what is no JSON comes as `text`."""
        found: list[dict[str, Any]] = []
        for line in self._log.read_text(errors="replace").splitlines() if self._log.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"event": "", "text": line})
        return [line for line in found if not event or line["event"] == event]

    def wait_for(self, event: str, count: int = 1, seconds: float = 60.0) -> dict[str, Any]:
        """The newest line of an event, once there are so many."""

        def look() -> dict[str, Any] | None:
            found = self.lines(event)
            if len(found) >= count:
                return found[-1]
            assert self.process.is_alive, f"the operator ended: {self.process.last_words()}"
            return None

        line = eventually(look, f"the line {event!r} of the operator", seconds=seconds)
        assert line is not None
        return line

    def get(self, path: str) -> str:
        """A page of its port."""
        port = self.wait_for("started")["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
