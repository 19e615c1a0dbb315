"""Maps each kind to its paths in the Kubernetes API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from dapt_operator.api.names import API_VERSION
from dapt_operator.launchers import jobset


@dataclass(frozen=True)
class ResourceKind:
    """A kind of object and its place in the API."""

    api_version: str
    plural: str
    is_namespaced: bool = True

    def collection(self, namespace: str | None = None) -> str:
        """Return the path of all objects of the kind, in one namespace or in all."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        inside = f"/namespaces/{quote(namespace, safe='')}" if self.is_namespaced and namespace else ""
        return f"{root}{inside}/{self.plural}"

    def path(self, namespace: str | None, name: str) -> str:
        """Return the path of one object."""
        return f"{self.collection(namespace)}/{quote(name, safe='')}"


KINDS: Final = {
    "DomainAdaptation": ResourceKind(API_VERSION, "domainadaptations"),
    "AdaptationProfile": ResourceKind(API_VERSION, "adaptationprofiles", is_namespaced=False),
    "Job": ResourceKind("batch/v1", "jobs"),
    "JobSet": ResourceKind(jobset.API_VERSION, "jobsets"),
    "Pod": ResourceKind("v1", "pods"),
    "ConfigMap": ResourceKind("v1", "configmaps"),
    "Secret": ResourceKind("v1", "secrets"),
    "Service": ResourceKind("v1", "services"),
    "PersistentVolumeClaim": ResourceKind("v1", "persistentvolumeclaims"),
    "Event": ResourceKind("v1", "events"),
    "Lease": ResourceKind("coordination.k8s.io/v1", "leases"),
}
"""Every kind that the adapter reads or writes. Kueue's Workloads are not here: their version is discovered."""
