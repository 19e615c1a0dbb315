"""A release of the chart, whose operator runs as a process of this machine: with the arguments of its Deployment and
the rights of its service account, and nothing more."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import urllib3

from testcluster.control_plane import ROOT, ControlPlane
from testcluster.helm import helm
from testcluster.processes import Process, free_port

CHART = ROOT / "charts" / "dapt"
START_SECONDS = 60.0


class Release:
    """Installed by `install`; its operator is what `run_operator` starts. A context manager that ends both."""

    def __init__(self, plane: ControlPlane, name: str = "dapt", namespace: str = "dapt-system") -> None:
        self.plane = plane
        self.name = name
        self.namespace = namespace
        self.operator: Process | None = None
        """The first replica, while it runs."""
        self.standby: Process | None = None
        """The second replica, while it runs."""
        self.port = 0
        """Of the pages of the replica that was started last."""

    def __enter__(self) -> Release:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_operator()
        if helm("list", "--short", "--namespace", self.namespace, kubeconfig=self.plane.kubeconfig).strip():
            self.uninstall()
        # Nobody owns it; the next release begins as on a new cluster.
        self.plane.api.delete("Lease", self.name, self.namespace)

    @property
    def user(self) -> str:
        """As the API server knows it."""
        account = self._deployment["spec"]["template"]["spec"]["serviceAccountName"]
        return f"system:serviceaccount:{self.namespace}:{account}"

    def install(self, values: Mapping[str, Any], *flags: str) -> str:
        """`helm upgrade --install` with these values alone, and these flags; returns what helm said.

        Raises:
            HelmError: it refused.
        """
        path = self.plane.folder / f"{self.name}-values.json"
        path.write_text(json.dumps(values))
        return helm(
            "upgrade", "--install", self.name, CHART, "--namespace", self.namespace, "--create-namespace",
            "--reset-values", "--values", path, *flags, kubeconfig=self.plane.kubeconfig,
        )  # fmt: skip

    def uninstall(self) -> None:
        """`helm uninstall`."""
        helm("uninstall", self.name, "--namespace", self.namespace, kubeconfig=self.plane.kubeconfig)

    def run_operator(self) -> None:
        """Start what the Deployment's container would; returns when it is ready."""
        self.stop_operator()
        self.operator = self._start("operator.log")

    def run_standby(self) -> None:
        """Start the same once more, as the Deployment's second pod; returns when it waits for the Lease."""
        self.standby = self._start("standby.log")
        waits = b"waiting for the Lease: another operator acts"
        self.standby.wait_until(
            lambda: waits in (self.plane.folder / "standby.log").read_bytes(), START_SECONDS
        )

    def lose_lease(self) -> int:
        """Somebody else takes the Lease for a second; returns the exit code of the replica that held it."""
        assert self.operator is not None
        lease = {"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 1}}
        self.plane.api.patch("Lease", self.name, lease, self.namespace)
        return self.operator.wait(START_SECONDS)

    def _start(self, log: str) -> Process:
        (container,) = self._deployment["spec"]["template"]["spec"]["containers"]
        command: list[str] = [*container["command"], *container["args"]]
        program, arguments = command[0], command[1:]
        self.port = free_port()
        arguments = [f"--port={self.port}" if word.startswith("--port=") else word for word in arguments]
        account = self.user.rpartition(":")[2]
        kubeconfig = self.plane.kubeconfig_for(self.namespace, account)
        process = Process(
            "operator",
            [Path(sysconfig.get_path("scripts")) / program, *arguments],
            self.plane.folder / log,
            {"KUBECONFIG": str(kubeconfig)},
        )
        process.wait_until(lambda: self.page("/readyz") == "ok\n", START_SECONDS)
        return process

    def stop_operator(self) -> None:
        """SIGTERM to every replica, as a node would."""
        for process in (self.operator, self.standby):
            if process is not None:
                process.stop()
        self.operator = self.standby = None

    def page(self, path: str) -> str:
        """What the operator answers; empty while it does not."""
        try:
            answer = urllib3.request("GET", f"http://127.0.0.1:{self.port}{path}", timeout=5, retries=False)
        except urllib3.exceptions.HTTPError:
            return ""
        return answer.data.decode() if answer.status == 200 else ""

    @property
    def _deployment(self) -> dict[str, Any]:
        labels = f"app.kubernetes.io/instance={self.name}"
        (found,) = self.plane.api.list("Deployment", self.namespace, labels=labels)
        return found
