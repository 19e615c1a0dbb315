"""Reads what this machine gives to a rank: shared memory, and whether NCCL can use its RDMA devices."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
RDMA_DEVICES = Path("/sys/class/infiniband")
"""The machine's RDMA devices; a container sees them whether or not it may use them."""
RDMA_FILES = Path("/dev/infiniband")
"""The device files of those that the container may use."""
VERBS_LIBRARY = "libibverbs.so.1"
"""What NCCL opens when it starts; without it, it uses TCP and says so at its log level INFO alone."""

_REMOVE = "remove it from the pod template"


def shared_memory_bytes(folder: Path = SHARED_MEMORY) -> int | None:
    """Return the size of the shared memory; None where there is none."""
    try:
        sizes = os.statvfs(folder)
    except OSError:
        return None
    return sizes.f_blocks * sizes.f_frsize


def reason_for_sockets(
    environment: Mapping[str, str] = os.environ,
    *,
    devices: Path = RDMA_DEVICES,
    files: Path = RDMA_FILES,
    library: str = VERBS_LIBRARY,
) -> str:
    """Return why NCCL would use TCP on a machine with RDMA devices; empty where it uses them, or where there are none.

    NCCL itself falls back to TCP without an error, and training is then ten times slower than it could be.
    """
    try:
        names = sorted(device.name for device in devices.iterdir())
    except OSError:
        return ""
    if not names:
        return ""
    found = f"it has RDMA devices ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
    if environment.get("NCCL_IB_DISABLE", "0") not in ("", "0"):
        return f"{found}, and NCCL_IB_DISABLE is {environment['NCCL_IB_DISABLE']}: {_REMOVE}"
    network = environment.get("NCCL_NET", "")
    if network.lower() == "socket":
        return f"{found}, and NCCL_NET is {network}: {_REMOVE}"
    if network or environment.get("NCCL_NET_PLUGIN"):
        return ""  # a plugin, such as a cloud's own, decides what it uses
    try:
        ctypes.CDLL(library)
    except OSError:
        return f"{found}, and the image has no {library}: use dapt's image, or install rdma-core in yours"
    if not any(files.glob("uverbs*")):
        return (
            f"{found}, and the pod was given none: request the device plugin's resource in the pod template"
        )
    return ""
