"""What a request to an API server is about, told from its method and address alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
LEASES = "coordination.k8s.io/leases"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Call:
    """One request, in the words of RBAC."""

    verb: str
    resource: str
    """`pods`, `pods/status`, `batch/jobs`; "" for anything but an API object."""
    namespace: str
    name: str
    agent: str
    """User agent up to its first blank or slash."""
    path: str = field(repr=False)
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    """Parsed JSON of a write."""

    @property
    def is_write(self) -> bool:
        """Whether it could change something."""
        return self.verb in WRITES

    @property
    def is_lease(self) -> bool:
        """Whether it only keeps a lease: such writes come by the clock, not by what happens."""
        return self.resource == LEASES


def parse_call(method: str, path: str, agent: str, body: Mapping[str, Any] | None = None) -> Call:
    """Verb and resource of a request."""
    place = urlsplit(path)
    parts = place.path.strip("/").split("/")
    short_agent = agent.partition(" ")[0].partition("/")[0]
    group, rest = _group_and_rest(parts)
    if rest is None:
        return Call(method.lower(), "", "", "", short_agent, path, body)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    query = parse_qs(place.query)
    if method == "GET":
        watches = query.get("watch", ["0"])[0] in ("1", "true", "True")
        verb = "watch" if watches else "get" if name else "list"
    else:
        verb = _VERBS.get(method, method.lower())
        verb = "deletecollection" if verb == "delete" and not name else verb
    resource = "/".join(part for part in (group, rest[0], subresource) if part)
    return Call(verb, resource, namespace, name, short_agent, path, body)


def _group_and_rest(parts: list[str]) -> tuple[str, list[str] | None]:
    if parts[0] == "api" and len(parts) > 2:
        return "", parts[2:]
    if parts[0] == "apis" and len(parts) > 3:
        return parts[1], parts[3:]
    return "", None
