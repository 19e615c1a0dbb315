"""A plain client of the API server for tests: JSON in, JSON out, no models, no retries."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from testcluster.certificates import KeyPair

Manifest = Mapping[str, Any]
TIMEOUT_SECONDS = 30.0

KINDS: dict[str, tuple[str, str, bool]] = {
    "Namespace": ("v1", "namespaces", False),
    "Node": ("v1", "nodes", False),
    "PersistentVolume": ("v1", "persistentvolumes", False),
    "ConfigMap": ("v1", "configmaps", True),
    "Endpoints": ("v1", "endpoints", True),
    "Event": ("v1", "events", True),
    "PersistentVolumeClaim": ("v1", "persistentvolumeclaims", True),
    "Pod": ("v1", "pods", True),
    "ResourceQuota": ("v1", "resourcequotas", True),
    "Secret": ("v1", "secrets", True),
    "Service": ("v1", "services", True),
    "ServiceAccount": ("v1", "serviceaccounts", True),
    "Job": ("batch/v1", "jobs", True),
    "Deployment": ("apps/v1", "deployments", True),
    "Lease": ("coordination.k8s.io/v1", "leases", True),
    "EndpointSlice": ("discovery.k8s.io/v1", "endpointslices", True),
    "PriorityClass": ("scheduling.k8s.io/v1", "priorityclasses", False),
    "StorageClass": ("storage.k8s.io/v1", "storageclasses", False),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1", "customresourcedefinitions", False),
    "ClusterRole": ("rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "Role": ("rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings", True),
    "AdaptationProfile": ("dapt.dev/v1alpha1", "adaptationprofiles", False),
    "DomainAdaptation": ("dapt.dev/v1alpha1", "domainadaptations", True),
}
"""apiVersion, plural and whether it lies in a namespace; discovery answers for every other kind."""

PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


class ApiError(Exception):
    """The API server refused."""

    def __init__(self, status: int, body: str) -> None:
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = {}
        self.status = status
        self.reason: str = parsed.get("reason", "")
        self.message: str = parsed.get("message", body)
        super().__init__(f"{status} {self.reason}: {self.message}")


class Api:
    """Talks to one API server as one user."""

    def __init__(
        self,
        url: str,
        authority: Path,
        *,
        pair: KeyPair | None = None,
        token: str = "",
        user_agent: str = "dapt-tests",
    ) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        self.url = url
        self._headers = {"User-Agent": user_agent, "Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.PoolManager(ssl_context=context, maxsize=16, retries=False)
        self._discovered: dict[tuple[str, str], tuple[str, bool]] = {}

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        timeout_seconds: float = TIMEOUT_SECONDS,
        **query: str | int,
    ) -> Any:
        """One request; JSON is parsed, other text is returned as it is.

        Raises:
            ApiError: any answer from 400 on.
            urllib3.exceptions.HTTPError: no answer.
        """
        address = f"{self.url}{path}" + (f"?{urlencode(query)}" if query else "")
        answer = self._pool.request(
            method,
            address,
            body=None if body is None else json.dumps(body),
            headers=self._headers | ({} if body is None else {"Content-Type": content_type}),
            timeout=timeout_seconds,
        )
        text = answer.data.decode(errors="replace")
        if answer.status >= 400:
            raise ApiError(answer.status, text)
        return json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text

    def path(self, kind: str, namespace: str = "", name: str = "", *, api_version: str = "") -> str:
        """Path of a collection or an object."""
        known = KINDS.get(kind)
        if known is not None and api_version in ("", known[0]):
            api_version, plural, namespaced = known
        else:
            plural, namespaced = self._discover(api_version, kind)
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        place = f"/namespaces/{namespace}" if namespaced and namespace else ""
        return f"{root}{place}/{plural}" + (f"/{name}" if name else "")

    def get(self, kind: str, name: str, namespace: str = "", *, api_version: str = "") -> dict[str, Any]:
        """An object."""
        return self.request("GET", self.path(kind, namespace, name, api_version=api_version))

    def find(
        self, kind: str, name: str, namespace: str = "", *, api_version: str = ""
    ) -> dict[str, Any] | None:
        """An object, or None if there is none."""
        try:
            return self.get(kind, name, namespace, api_version=api_version)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, kind: str, namespace: str = "", *, labels: str = "", fields: str = "", api_version: str = ""
    ) -> list[dict[str, Any]]:
        """All objects, of every namespace unless one is named."""
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        query: dict[str, Any] = {name: value for name, value in selectors.items() if value}
        path = self.path(kind, namespace, api_version=api_version)
        return self.request("GET", path, **query)["items"]

    def create(self, manifest: Manifest, namespace: str = "") -> dict[str, Any]:
        """POST; the namespace is the manifest's, or the one given."""
        path = self._place(manifest, namespace).rpartition("/")[0]
        return self.request("POST", path, manifest)

    def apply(
        self, manifest: Manifest, namespace: str = "", *, manager: str = "tests", dry_run: bool = False
    ) -> dict[str, Any]:
        """Server-side apply, as `kubectl apply --server-side --force-conflicts`."""
        query: dict[str, Any] = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        return self.request(
            "PATCH",
            self._place(manifest, namespace),
            manifest,
            content_type=PATCHES["apply"],
            **query | ({"dryRun": "All"} if dry_run else {}),
        )

    def patch(
        self,
        kind: str,
        name: str,
        patch: Any,
        namespace: str = "",
        *,
        subresource: str = "",
        how: str = "merge",
        api_version: str = "",
    ) -> dict[str, Any]:
        """A merge, strategic, json or apply patch."""
        path = self.path(kind, namespace, name, api_version=api_version)
        path += f"/{subresource}" if subresource else ""
        return self.request("PATCH", path, patch, content_type=PATCHES[how])

    def delete(
        self,
        kind: str,
        name: str,
        namespace: str = "",
        *,
        propagation: str = "Background",
        grace_seconds: int | None = None,
        api_version: str = "",
    ) -> None:
        """Delete; an object that is not there is fine."""
        options: dict[str, Any] = {"propagationPolicy": propagation}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            self.request("DELETE", self.path(kind, namespace, name, api_version=api_version), options)
        except ApiError as error:
            if error.status != 404:
                raise

    def _place(self, manifest: Manifest, namespace: str) -> str:
        metadata = manifest["metadata"]
        return self.path(
            manifest["kind"],
            metadata.get("namespace", namespace),
            metadata["name"],
            api_version=manifest["apiVersion"],
        )

    def _discover(self, api_version: str, kind: str) -> tuple[str, bool]:
        if (api_version, kind) not in self._discovered:
            root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
            for item in self.request("GET", root)["resources"]:
                if "/" not in item["name"]:
                    self._discovered[(api_version, item["kind"])] = (item["name"], item["namespaced"])
        return self._discovered[(api_version, kind)]
