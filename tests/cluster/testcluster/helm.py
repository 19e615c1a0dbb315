"""Helm for the tests of the chart."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from testcluster import build

TIMEOUT_SECONDS = 180.0


class HelmError(Exception):
    """Helm refused; the sentence is its own."""


def helm(*arguments: str | Path, kubeconfig: Path | None = None, folder: Path | None = None) -> str:
    """What one helm command prints; it reads no settings of this machine's user.

    Args:
        arguments: of the command, such as "template" and the chart's folder.
        kubeconfig: for the commands that talk to a cluster.
        folder: where helm may keep its own files; without one it keeps none between commands.

    Raises:
        BuildError: helm is not built and cannot be.
        HelmError: it ended with another code than 0.
        subprocess.TimeoutExpired: it took longer than three minutes.
    """
    home = folder or Path(os.devnull)
    places = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    known = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
    access = {"KUBECONFIG": str(kubeconfig or os.devnull)}
    done = subprocess.run(
        [build.build("helm") / "helm", *arguments],
        env=known | places | access,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise HelmError(
            f"helm {arguments[0]} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout
