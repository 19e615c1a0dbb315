"""The API server's audit log: who sent how many requests of what kind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class Request:
    """One line of the log."""

    verb: str
    resource: str
    """`pods`, `pods/status`; with the group in front of it for others than the core: `batch/jobs`."""
    namespace: str
    name: str
    agent: str
    """User agent up to its first blank or slash."""
    user: str
    code: int
    stage: str
    path: str
    micros: str
    """When it came, as the API server writes it: microseconds, UTC."""

    @property
    def is_write(self) -> bool:
        """Whether it could change something."""
        return self.verb in WRITES


class AuditLog:
    """Reads what was written so far, from a mark on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> int:
        """The place in the log that is its end now."""
        return self.path.stat().st_size if self.path.exists() else 0

    def requests(self, since: int = 0) -> Iterator[Request]:
        """Every request since a mark; a watch appears when it begins and when it ends."""
        with self.path.open("rb") as file:
            file.seek(since)
            for line in file:
                if line.endswith(b"\n"):  # the last line may be half written
                    yield _parse(json.loads(line))

    def count(
        self,
        since: int = 0,
        where: Callable[[Request], bool] = lambda _: True,
        by: Callable[[Request], Any] = lambda request: (request.agent, request.verb, request.resource),
    ) -> Counter[Any]:
        """How many requests, without watches and leases, by agent, verb and resource unless said otherwise."""
        return Counter(
            by(request)
            for request in self.requests(since)
            if request.verb != "watch"
            and request.stage == "ResponseComplete"
            and not request.resource.endswith("/leases")
            and where(request)
        )


def _parse(line: dict[str, Any]) -> Request:
    reference = line.get("objectRef") or {}
    parts = [reference.get("apiGroup", ""), reference.get("resource", ""), reference.get("subresource", "")]
    return Request(
        verb=line.get("verb", ""),
        resource="/".join(part for part in parts if part),
        namespace=reference.get("namespace", ""),
        name=reference.get("name", ""),
        agent=line.get("userAgent", "").partition(" ")[0].partition("/")[0],
        user=line.get("user", {}).get("username", ""),
        code=line.get("responseStatus", {}).get("code", 0),
        stage=line.get("stage", ""),
        path=line.get("requestURI", ""),
        micros=line.get("requestReceivedTimestamp", ""),
    )
