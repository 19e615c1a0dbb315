"""What this machine has room for: Jobs wait for CPUs and accelerators here as pods wait for a scheduler elsewhere.

A pod without a CPU request is taken to use the whole machine, so two of them never run side by side: an evaluation does
not slow down the training that it measures. A Job that alone asks for more than there is starts when nothing else runs:
it was planned for this machine, and waiting would not help it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dapt_operator.api.quantity import parse_quantity
from dapt_operator.stage_run import Manifest

CPU = "cpu"
_NOT_COUNTED = frozenset({"memory", "ephemeral-storage"})
"""The machine's own, shared with everything else that runs on it."""


@dataclass(frozen=True)
class Capacity:
    """Amounts by resource: `cpu` in cores, others in devices."""

    amounts: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Capacity) -> Capacity:
        """Both together."""
        names = {*self.amounts, *other.amounts}
        return Capacity({name: self.amounts.get(name, 0.0) + other.amounts.get(name, 0.0) for name in names})

    def lacking(self, wanted: Capacity, capacity: Capacity) -> str:
        """Why `wanted` does not fit beside this in `capacity`, in one sentence; empty when it does."""
        for name, amount in sorted(wanted.amounts.items()):
            has, used = capacity.amounts.get(name, 0.0), self.amounts.get(name, 0.0)
            if used + amount > has + 1e-9:
                return f"{used:g} of {has:g} {name} are in use on this machine and {amount:g} are asked for"
        return ""


def machine(accelerators: Mapping[str, int] | None = None) -> Capacity:
    """All cores of this machine that we may use, and its accelerators by resource name."""
    cores = float(len(os.sched_getaffinity(0)))
    return Capacity({CPU: cores} | {name: float(count) for name, count in (accelerators or {}).items()})


def demand(job: Manifest, capacity: Capacity) -> Capacity:
    """What all pods of a Job ask for together."""
    pods = int(job["spec"].get("completions", 1))
    whole = capacity.amounts.get(CPU, 0.0)
    amounts: dict[str, float] = {}
    devices = False
    for container in job["spec"]["template"]["spec"]["containers"]:
        resources: Mapping[str, Any] = container.get("resources") or {}
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        for name, amount in asked.items():
            if name not in _NOT_COUNTED:
                amounts[name] = amounts.get(name, 0.0) + pods * parse_quantity(str(amount))
                devices = devices or name != CPU
    if not devices:
        amounts.setdefault(CPU, whole)
    # a gang with accelerators is bounded by them; the cores beside them are shared as the kernel sees fit
    return Capacity({name: amount for name, amount in amounts.items() if name != CPU or not devices})
