"""What a killed test run could not clear away: the next one does.

A cluster's folder carries the process id of its tests; routes that they made are noted in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from ipaddress import IPv4Network
from pathlib import Path

PREFIX = "dapt-cluster-"
ROUTE_SUFFIX = ".route"


def new_folder() -> Path:
    """A folder of this process."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def add_route(network: IPv4Network, folder: Path) -> bool:
    """Make a network this host's own and note it; whether that was possible."""
    if not route("add", network):
        return False
    _note(network, folder).touch()
    return True


def remove_route(network: IPv4Network, folder: Path) -> None:
    """Take it away again."""
    route("del", network)
    _note(network, folder).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """A cluster's folder with everything noted in it."""
    for note in folder.glob(f"*{ROUTE_SUFFIX}"):
        route("del", IPv4Network(note.name.removesuffix(ROUTE_SUFFIX).replace("_", "/")))
    shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove what belongs to processes that are gone; logs that somebody keeps go with it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            remove(folder)


def _note(network: IPv4Network, folder: Path) -> Path:
    return folder / f"{str(network).replace('/', '_')}{ROUTE_SUFFIX}"


def route(verb: str, network: IPv4Network) -> bool:
    """Add or delete (`verb`) a network of this host's own; whether the kernel did."""
    if shutil.which("ip") is None:
        return False
    command = ["ip", "route", verb, "local", str(network), "dev", "lo"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
