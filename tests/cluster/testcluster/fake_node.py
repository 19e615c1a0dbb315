"""A node that is only said to exist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FakeNode:
    """What a scripted kubelet says of its node; room for everything unless a test wants less."""

    name: str = ""
    """Random when empty."""
    cpu: str = "100000"
    memory: str = "1000Ti"
    pods: int = 100_000
    resources: Mapping[str, int] = field(default_factory=lambda: {"nvidia.com/gpu": 100_000})
    labels: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        """The Node."""
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", **self.labels}
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}}

    def status(self, log_port: int) -> dict[str, Any]:
        """Ready, with what it offers and where its logs are read."""
        offered = {
            "cpu": self.cpu,
            "memory": self.memory,
            "pods": str(self.pods),
            "ephemeral-storage": "500Ti",
        }
        offered |= {name: str(amount) for name, amount in self.resources.items()}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "scripted"}
        return {
            "capacity": offered,
            "allocatable": offered,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": log_port}},
        }
