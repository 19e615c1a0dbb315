"""The bridge that a node's pods hang on: a network of its own, which leads nowhere but to this machine."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "daptb"
"""Of the bridge's name; the rest is the process id of its owner. The kernel allows 15 characters."""
NETWORKS = tuple(ipaddress.IPv4Network("10.213.0.0/16").subnets(new_prefix=24))
LOCK = Path("/tmp/dapt-node.lock")
"""Held while a bridge, and with it a node, is there; the kernel drops it with the process."""


@dataclass(frozen=True)
class Bridge:
    """A bridge that is up."""

    name: str
    subnet: str
    address: str
    """The machine's own on it."""


@contextlib.contextmanager
def bridge() -> Iterator[Bridge]:
    """A bridge on a free network, gone at the end with everything attached; bridges of dead owners go as well.

    Waits while another process of this machine, such as the other worker of the tests, has one.

    Raises:
        subprocess.CalledProcessError: the kernel refuses; needs root.
    """
    with LOCK.open("w") as lock:
        # Two nodes would mount on the same folders of the machine (`node.HIDDEN`), each in a namespace of its own. The
        # first to end removes those that it made, and the kernel then takes away what the other has mounted there.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _only_bridge() as made:
            yield made


@contextlib.contextmanager
def _only_bridge() -> Iterator[Bridge]:
    _sweep()
    taken = [ipaddress.IPv4Network(route, strict=False) for route in _routes()]
    network = next(
        it for it in NETWORKS[os.getpid() % 128 :] if not any(it.overlaps(other) for other in taken)
    )
    made = Bridge(f"{PREFIX}{os.getpid()}", str(network), str(network[1]))
    _ip("link", "add", made.name, "type", "bridge")
    try:
        _ip("address", "add", f"{made.address}/{network.prefixlen}", "dev", made.name)
        _ip("link", "set", made.name, "up")
        with _forwarding(made.name):
            yield made
    finally:
        _ip("link", "delete", made.name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _routes() -> list[str]:
    found = [item["dst"] for item in json.loads(_ip("-json", "-4", "route", "show", "table", "all"))]
    return [route for route in found if route != "default"]


def _sweep() -> None:
    for link in json.loads(_ip("-json", "link", "show", "type", "bridge")):
        owner = str(link.get("ifname", "")).removeprefix(PREFIX)
        if owner.isdigit() and f"{PREFIX}{owner}" == link["ifname"] and not Path(f"/proc/{owner}").exists():
            _ip("link", "delete", link["ifname"])


@contextlib.contextmanager
def _forwarding(name: str) -> Iterator[None]:
    """Where frames of bridges pass the packet filter and it drops what nobody allowed (as beside Docker), allow
    ours."""
    rule = ["FORWARD", "-i", name, "-o", name, "-j", "ACCEPT"]
    filtered = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    try:
        asked = filtered.read_text().strip() == "1" and "-P FORWARD DROP" in _filter("-S", "FORWARD")
    except OSError:  # no such module, or no iptables
        asked = False
    if asked:
        _filter("-I", *rule)
    try:
        yield
    finally:
        if asked:
            _filter("-D", *rule)


def _filter(*arguments: str) -> str:
    return subprocess.run(["iptables", "-w", *arguments], check=True, capture_output=True, text=True).stdout
