"""An API double that kopf can list and watch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from dapt_operator.cluster.kubernetes.resources import KINDS
from support.api_double import ApiDouble, Odd, Request

BOOKMARK_SECONDS = 30.0
INSTALLED = {
    "v1": (("Pod", "pods", True), ("Namespace", "namespaces", False), ("Event", "events", True)),
    "apiextensions.k8s.io/v1": (("CustomResourceDefinition", "customresourcedefinitions", False),),
    "batch/v1": (("Job", "jobs", True),),
    "dapt.dev/v1alpha1": (
        ("DomainAdaptation", "domainadaptations", True),
        ("AdaptationProfile", "adaptationprofiles", False),
    ),
}
"""Kind, plural and whether it is in a namespace, by version. kopf wants to know of some that it does not watch."""


class WatchedDouble(ApiDouble):
    """Discovers its kinds to a client, and streams the changes of each."""

    def __init__(self) -> None:
        super().__init__()
        self.interfere = self.discovery_or_watch

    def discovery_or_watch(self, request: Request) -> Odd | None:
        """The answer to what every watch begins with, and to a watch; None for anything else."""
        if request.method == "GET" and request.query.get("watch"):
            version = int(request.query.get("resourceVersion") or 0)
            return Odd(
                200, {"Content-Type": "application/json"}, pieces=lambda: self._events(request, version)
            )
        if request.method == "GET" and (found := discovery(request.path)) is not None:
            return Odd(200, {"Content-Type": "application/json"}, json.dumps(found).encode())
        return None

    def _events(self, request: Request, version: int) -> Iterator[bytes]:
        plural = request.path.rpartition("/")[2]
        kind = next(name for name, kind in KINDS.items() if kind.plural == plural)
        place = 0
        bookmark_at = time.monotonic() + BOOKMARK_SECONDS
        while True:
            # Only appended to.
            while place < len(self.changes):
                what, body = self.changes[place]
                place += 1
                number = int(body["metadata"]["resourceVersion"])
                if body.get("kind") == kind and number > version:
                    yield event("MODIFIED" if what == "put" else "DELETED", body)
            if time.monotonic() >= bookmark_at:
                bookmark_at = time.monotonic() + BOOKMARK_SECONDS
                yield event("BOOKMARK", {"kind": kind, "metadata": {"resourceVersion": str(self.version)}})
            time.sleep(0.1)


def event(what: str, body: Any) -> bytes:
    """One line of a watch."""
    return json.dumps({"type": what, "object": body}).encode() + b"\n"


def discovery(path: str) -> dict[str, Any] | None:
    """What the server says about the kinds that it serves; None where the path is another one."""
    groups = [version.split("/") for version in INSTALLED if "/" in version]
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        return {
            "groups": [
                {"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}}
                for group, version in groups
            ]
        }
    kinds = INSTALLED.get(path.removeprefix("/apis/").removeprefix("/api/"))
    if kinds is None:
        return None
    verbs = ["get", "list", "watch", "patch"]
    return {
        "resources": [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": inside, "verbs": verbs}
            for kind, plural, inside in kinds
        ]
    }
