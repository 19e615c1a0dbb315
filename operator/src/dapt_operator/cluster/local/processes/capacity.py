"""Computes whether this machine has capacity for a Job. Jobs wait for CPUs and accelerators as pods wait in a cluster.

A pod without a CPU request counts as using the whole machine, so two of them never run in parallel: an evaluation does
not slow down the training that it measures. A Job that alone requests more than the machine has starts when nothing
else runs: it was planned for this machine, and waiting would not help it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dapt_operator.api.quantity import parse_quantity
from dapt_operator.stage_run import Manifest

CPU: Final = "cpu"
_NOT_COUNTED: Final = frozenset({"memory", "ephemeral-storage"})
"""Resources that are shared with everything else that runs on the machine."""
_ROUNDING: Final = 1e-9
"""Sums of fractions of cores may exceed a whole number by a rounding error."""


@dataclass(frozen=True)
class Capacity:
    """Amounts by resource: `cpu` in cores, others in devices."""

    amounts: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Capacity) -> Capacity:
        """Return the sum of both."""
        names = {*self.amounts, *other.amounts}
        return Capacity({name: self.amounts.get(name, 0.0) + other.amounts.get(name, 0.0) for name in names})

    def why_no_fit(self, request: Capacity, total: Capacity) -> str:
        """Return why `request` does not fit in `total` next to this, in one sentence; empty when it fits."""
        for name, requested in sorted(request.amounts.items()):
            available, used = total.amounts.get(name, 0.0), self.amounts.get(name, 0.0)
            if used + requested > available + _ROUNDING:
                return f"{used:g} of {available:g} {name} are in use on this machine and {requested:g} are requested"
        return ""


def machine_capacity(accelerators: Mapping[str, int] | None = None) -> Capacity:
    """Return the cores of this machine that this process may use, and its accelerators by resource name."""
    # Not `os.cpu_count`: a container or taskset may leave this process fewer cores.
    cores = float(len(os.sched_getaffinity(0)))
    return Capacity({CPU: cores} | {name: float(count) for name, count in (accelerators or {}).items()})


def job_request(job: Manifest, total: Capacity) -> Capacity:
    """Return what all pods of a Job request together."""
    num_pods = int(job["spec"].get("completions", 1))
    amounts: dict[str, float] = {}
    has_devices = False
    for container in job["spec"]["template"]["spec"]["containers"]:
        resources: Manifest = container.get("resources") or {}
        # As Kubernetes does: without a request of its own a limit is the request.
        requested = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, amount in requested.items():
            if name not in _NOT_COUNTED:
                amounts[name] = amounts.get(name, 0.0) + num_pods * parse_quantity(str(amount))
                has_devices = has_devices or name != CPU
    if not has_devices:
        amounts.setdefault(CPU, total.amounts.get(CPU, 0.0))
    # Accelerators bound how many such gangs run; the kernel shares the cores between their processes.
    return Capacity({name: amount for name, amount in amounts.items() if name != CPU or not has_devices})
