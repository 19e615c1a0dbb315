"""`dapt operator` as a process of the tests."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from testcluster.control_plane import ControlPlane
from testcluster.processes import Process, free_port
from testcluster.waiting import eventually

AGENT = "dapt-operator"
READY_SECONDS = 60.0
_numbers = itertools.count(1)


class Operator:
    """The operator on this host, with the administrator's kubeconfig unless another is given; a context manager.

    Args:
        plane: where it acts.
        kubeconfig: of a service account, or through a proxy.
        instance: installation; its Lease is named after it.
        arguments: further flags of `dapt operator`.
        wait: whether to return only when it acts.
    """

    def __init__(
        self,
        plane: ControlPlane,
        *,
        kubeconfig: Path | None = None,
        instance: str = "default/dapt",
        lease_namespace: str = "default",
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        self.port = free_port()
        """Of /healthz, /readyz and /metrics."""
        self.log = plane.folder / f"operator-{next(_numbers)}.log"
        self._kubeconfig = kubeconfig or plane.kubeconfig
        self._flags = [
            f"--instance={instance}",
            f"--lease-namespace={lease_namespace}",
            f"--port={self.port}",
            *arguments,
        ]
        self._environment = environment or {}
        self._wait = wait
        self.process: Process | None = None

    def __enter__(self) -> Operator:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Of its pages."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it, once more after an end."""
        dapt = Path(sys.executable).with_name("dapt")
        environment = {"KUBECONFIG": str(self._kubeconfig), "KUBERNETES_SERVICE_HOST": ""} | self._environment
        self.process = Process("dapt operator", [dapt, "operator", *self._flags], self.log, environment)
        if self._wait:
            self.process.wait_until(self.is_ready, READY_SECONDS)

    def is_ready(self) -> bool:
        """Whether it acts, by its own account."""
        with contextlib.suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    def metrics(self) -> str:
        """What Prometheus would read."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.signal(signal.SIGKILL)
        eventually(lambda: self.process is not None and not self.process.is_alive, "the operator's end")

    def stop(self) -> int | None:
        """SIGTERM; its exit code."""
        if self.process is None:
            return None
        self.process.stop()
        return self.process.exit_code
