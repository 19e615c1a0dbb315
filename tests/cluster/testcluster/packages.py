"""What the whole node takes from Debian: container runtime and network plugins. `python -m testcluster.packages`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("containerd", "runc", "containernetworking-plugins", "iproute2", "util-linux")
PROGRAMS = ("containerd", "ctr", "runc", "ip", "unshare", "setpriv")
"""Of these packages; `kubectl`, which the tests use as well, comes from elsewhere."""
PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
"""Debian's folder, and the one that everybody else uses."""
PLUGINS = ("bridge", "host-local", "loopback")


def plugin_folder() -> Path | None:
    """Where the network plugins are."""
    return next((folder for folder in PLUGIN_FOLDERS if all((folder / it).is_file() for it in PLUGINS)), None)


def missing() -> tuple[str, ...]:
    """What the node needs and this machine lacks, in words."""
    programs = [name for name in PROGRAMS if shutil.which(name) is None]
    plugins = [] if plugin_folder() else [f"the network plugins {', '.join(PLUGINS)}"]
    return (*programs, *plugins)


def install() -> str:
    """Install what is missing with apt, as root; returns one line that says what came of it.

    Raises:
        subprocess.CalledProcessError: apt failed; its own lines went to standard error.
    """
    lacking = missing()
    if not lacking:
        return "whole node: container runtime and network plugins are there"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return (
            f"whole node: {', '.join(lacking)} missing, and only root can install them, with apt: "
            f"its tests are skipped. The packages are {', '.join(PACKAGES)}"
        )
    environment = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
    ):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return f"whole node: installed {', '.join(PACKAGES)}"


if __name__ == "__main__":
    try:
        print(install())
    except subprocess.CalledProcessError as error:
        print(f"whole node: `{' '.join(error.cmd)}` ended with {error.returncode}: its tests are skipped")
