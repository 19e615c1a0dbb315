"""The five verbs by which the planner's plans reach the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from dapt_operator.stage_run import Children, Manifest


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
    default_profiles: tuple[str, ...] = ()
    """Names of all profiles marked as default, when the resource names none: two are an error."""


@dataclass(frozen=True)
class ObjectReference:
    """Enough to delete an object."""

    kind: str
    name: str
    grace_seconds: int | None = None
    """For a Pod: 0 kills it at once. None: its own grace period."""


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event of the documented set."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


class ConflictError(Exception):
    """Someone wrote the resource since it was observed: observe again. A retry helps."""


class NameTakenError(Exception):
    """An object of ours cannot be created: the name belongs to something else. A person must move it away."""

    def __init__(self, kind: str, name: str, why: str, *, ours: bool = False) -> None:
        """
        Args:
            kind: of the object.
            name: its name.
            why: whose it is, for example `it belongs to nobody`.
            ours: it is this adaptation's, with another content: left from a run that was never started, or changed
                since. The next name is free then.
        """
        whose = "holds something else than it should" if ours else "is not this adaptation's"
        super().__init__(f"{kind} {name} exists already and {whose}: {why}")
        self.kind = kind
        self.name = name
        self.why = why
        self.ours = ours


class CannotCreateError(Exception):
    """The cluster refuses an object of ours, and will again until a person changes something."""

    def __init__(self, kind: str, name: str, why: str) -> None:
        """
        Args:
            kind: of the object.
            name: its name.
            why: the cluster's own sentence.
        """
        super().__init__(f"the cluster refuses {kind} {name}: {why}")


class Cluster(Protocol):
    """The port. Adapters: `local` (processes), `memory` (tests), `kubernetes`."""

    def observe(self, key: Key) -> World:
        """Gather everything that a plan may depend on."""
        ...

    def apply(self, key: Key, manifest: Manifest) -> None:
        """Make an object exist. Jobs, JobSets, Secrets and immutable ConfigMaps are created once (existing: no
        effect), everything else is applied server-side with one field manager.

        Raises:
            NameTaken: the name belongs to another owner, or an immutable ConfigMap holds something else.
            CannotMake: a quota, a policy, missing rights, or a kind that is not installed.
        """
        ...

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object and what it owns; absent: no effect. Pods get SIGTERM and their grace period; a Job is gone
        when its pods are, so that what they said last can still be read."""
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
