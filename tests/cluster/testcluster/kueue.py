"""Kueue beside a control plane, and the queues of a test."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from testcluster.control_plane import ControlPlane
from testcluster.controllers import Published, running
from testcluster.processes import Process
from testcluster.waiting import eventually

API_VERSION = "kueue.x-k8s.io/v1beta1"
KUEUE = Published(
    "kueue",
    configuration={
        "apiVersion": "config.kueue.x-k8s.io/v1beta1",
        "integrations": {"frameworks": ["batch/job", "jobset.x-k8s.io/jobset"]},
    },
    flags=("--feature-gates=VisibilityOnDemand=false",),
    fills_secret=True,
)


def kueue(plane: ControlPlane) -> AbstractContextManager[Process]:
    """Kueue's manager at work, its CRDs installed; it looks after Jobs, and JobSets where their CRD is.

    Raises:
        BuildError: it is not built and cannot be.
        StartError: it does not come up; with the end of its log.
    """
    return running(KUEUE, plane)


class Queues:
    """A namespace's queue with a quota of its own."""

    def __init__(self, plane: ControlPlane, namespace: str, name: str = "team") -> None:
        self.name = name
        """Of the LocalQueue."""
        self.namespace = namespace
        self.cluster_queue = f"{namespace}-{name}"
        self._plane = plane

    def create(self, quota: dict[str, str]) -> None:
        """Flavor, ClusterQueue and LocalQueue, admitting; `quota` by resource, such as {"cpu": "4"}."""
        flavor = {
            "apiVersion": API_VERSION,
            "kind": "ResourceFlavor",
            "metadata": {"name": self.cluster_queue},
        }
        self._plane.api.apply(flavor)
        self.set_quota(quota)
        self._plane.api.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "LocalQueue",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": {"clusterQueue": self.cluster_queue},
            }
        )
        eventually(self._is_active, f"LocalQueue {self.name} active")

    def set_quota(self, quota: dict[str, str], **spec: Any) -> None:
        """Change what the queue may give; further fields of the ClusterQueue's spec by name."""
        self._plane.api.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "ClusterQueue",
                "metadata": {"name": self.cluster_queue},
                "spec": {
                    "namespaceSelector": {},
                    "resourceGroups": [
                        {
                            "coveredResources": sorted(quota),
                            "flavors": [
                                {
                                    "name": self.cluster_queue,
                                    "resources": [
                                        {"name": resource, "nominalQuota": quota[resource]}
                                        for resource in sorted(quota)
                                    ],
                                }
                            ],
                        }
                    ],
                    **spec,
                },
            }
        )

    def used(self) -> dict[str, str]:
        """What admitted workloads hold now, by resource."""
        status = self._plane.api.get("ClusterQueue", self.cluster_queue, api_version=API_VERSION)["status"]
        return {
            resource["name"]: resource["total"]
            for flavor in status.get("flavorsReservation") or []
            for resource in flavor["resources"]
        }

    def workloads(self) -> list[dict[str, Any]]:
        """Kueue's Workloads of the namespace."""
        return self._plane.api.list("Workload", self.namespace, api_version=API_VERSION)

    def _is_active(self) -> bool:
        queue = self._plane.api.get("LocalQueue", self.name, self.namespace, api_version=API_VERSION)
        return any(
            item["type"] == "Active" and item["status"] == "True"
            for item in queue.get("status", {}).get("conditions") or []
        )
