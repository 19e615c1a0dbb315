"""Where each kind lives in the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from dapt_operator.api.names import API_VERSION


@dataclass(frozen=True)
class ResourceKind:
    """A kind of object."""

    api_version: str
    plural: str
    namespaced: bool = True

    def collection(self, namespace: str | None = None) -> str:
        """Path of all objects, of one namespace or of all."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        inside = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced and namespace else ""
        return f"{root}{inside}/{self.plural}"

    def path(self, namespace: str | None, name: str) -> str:
        """Path of one object."""
        return f"{self.collection(namespace)}/{quote(name, safe='')}"


KINDS: Final = {
    "DomainAdaptation": ResourceKind(API_VERSION, "domainadaptations"),
    "AdaptationProfile": ResourceKind(API_VERSION, "adaptationprofiles", namespaced=False),
    "Job": ResourceKind("batch/v1", "jobs"),
    "JobSet": ResourceKind("jobset.x-k8s.io/v1alpha2", "jobsets"),
    "Pod": ResourceKind("v1", "pods"),
    "ConfigMap": ResourceKind("v1", "configmaps"),
    "Secret": ResourceKind("v1", "secrets"),
    "Service": ResourceKind("v1", "services"),
    "PersistentVolumeClaim": ResourceKind("v1", "persistentvolumeclaims"),
    "Event": ResourceKind("v1", "events"),
    "Lease": ResourceKind("coordination.k8s.io/v1", "leases"),
}
"""Every kind that we read or write by name; Kueue's Workloads have the version that the server prefers."""
