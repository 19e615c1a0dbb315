"""The five verbs by which the planner's plans reach the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from dapt_operator.api.run import Children, Manifest


@dataclass(frozen=True)
class Key:
    """Which DomainAdaptation."""

    namespace: str
    name: str


@dataclass(frozen=True)
class World:
    """Raw facts about one adaptation at one moment."""

    now: datetime
    """Aware, UTC."""
    resource: Manifest | None
    """The DomainAdaptation as stored; None when it is gone."""
    profile: Manifest | None
    """The AdaptationProfile it refers to, or the default one; None when there is none."""
    children: Children


@dataclass(frozen=True)
class ObjectReference:
    """Enough to delete an object."""

    kind: str
    name: str


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event of the documented set."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


class Conflict(Exception):
    """Someone wrote the resource since it was observed: observe again. A retry helps."""


class Cluster(Protocol):
    """The port. Adapters: `local` (processes), `memory` (tests), `kubernetes`."""

    def observe(self, key: Key) -> World:
        """Gather everything that a plan may depend on."""
        ...

    def apply(self, key: Key, manifest: Manifest) -> None:
        """Make an object exist. Jobs, Secrets and immutable ConfigMaps are created once (existing: no effect)."""
        ...

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object and what it owns; absent: no effect. Pods get SIGTERM and their grace period."""
        ...

    def write_status(self, key: Key, status: Mapping[str, Any], resource_version: str) -> None:
        """Replace the status.

        Raises:
            Conflict: `resource_version` is not the stored one.
        """
        ...

    def record(self, key: Key, event: Event) -> None:
        """Post an Event."""
        ...
