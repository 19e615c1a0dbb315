"""Helm for the tests of the chart."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from testcluster import build

TIMEOUT_SECONDS = 180.0


class HelmError(Exception):
    """Helm refused; the sentence is its own."""


def helm(*arguments: str | Path, kubeconfig: Path | None = None) -> str:
    """What one helm command prints; it reads no settings of this machine's user and keeps none.

    Args:
        arguments: of the command, such as "template" and the chart's folder.
        kubeconfig: for the commands that talk to a cluster.

    Raises:
        BuildError: helm is not built and cannot be.
        HelmError: it ended with another code than 0.
        subprocess.TimeoutExpired: it took longer than three minutes.
    """
    program = build.build("helm") / "helm"
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    with tempfile.TemporaryDirectory(prefix="dapt-helm-") as folder:
        places = {f"HELM_{kind}_HOME": f"{folder}/{kind}" for kind in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [program, *arguments],
            env=known | places | {"KUBECONFIG": str(kubeconfig or os.devnull)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        said = "\n".join(text.strip() for text in (done.stderr, done.stdout) if text.strip())
        raise HelmError(f"helm {arguments[0]} ended with {done.returncode}: {said}")
    return done.stdout
