"""Where each kind lives in the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from dapt_operator.api.names import API_VERSION


@dataclass(frozen=True)
class Kind:
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
    "DomainAdaptation": Kind(API_VERSION, "domainadaptations"),
    "AdaptationProfile": Kind(API_VERSION, "adaptationprofiles", namespaced=False),
    "Job": Kind("batch/v1", "jobs"),
    "JobSet": Kind("jobset.x-k8s.io/v1alpha2", "jobsets"),
    "Pod": Kind("v1", "pods"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Secret": Kind("v1", "secrets"),
    "Service": Kind("v1", "services"),
    "PersistentVolumeClaim": Kind("v1", "persistentvolumeclaims"),
    "Event": Kind("v1", "events"),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
}
"""Every kind that we read or write by name; Kueue's Workloads have the version that the server prefers."""
