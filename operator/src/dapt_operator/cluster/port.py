"""Defines the five verbs by which the reconcile reads and changes the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from dapt_contract.untrusted.printable import printable
from dapt_operator.stage_run import Children, Manifest


@dataclass(frozen=True)
class Key:
    """Identifies a DomainAdaptation."""

    namespace: str
    name: str


@dataclass(frozen=True)
class World:
    """Raw objects of one adaptation at one moment."""

    now: datetime
    """Aware, UTC."""
    resource: Manifest | None
    """The DomainAdaptation as stored; None when it is gone."""
    profile: Manifest | None
    """The AdaptationProfile that the resource names, or the default one; None when there is none."""
    children: Children
    default_profiles: tuple[str, ...] = ()
    """Names of all profiles marked as default, if the resource names none. More than one is an error."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Digest of the files that a source of tuning data or evaluation items names, for sources on this machine: files
    that are corrected in place count as an edit. Empty in a cluster, whose operator cannot see them."""
    is_check_due: bool = False
    """Whether it is time to make sure that the objects which live runs use exist. No watch reports those."""
    keeps_ended_runs: bool = False
    """Whether the objects of ended runs are files that stay, as those of a local run are."""


@dataclass(frozen=True)
class ObjectReference:
    """Identifies an object to delete."""

    kind: str
    name: str
    grace_seconds: int | None = None
    """Grace period of a Pod: 0 kills it at once, None keeps its own."""


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event of the documented set."""

    type: str
    """`Normal` or `Warning`."""
    reason: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", printable(self.message))


class Cluster(Protocol):
    """The port. Adapters: `kubernetes`, `local` (processes on this machine), `dapt_operator.testing` (in memory)."""

    def observe(self, key: Key) -> World:
        """Return everything that a plan may depend on."""
        ...

    def apply(self, key: Key, manifest: Manifest) -> bool:
        """Make an object exist; return whether it was created by this very call.

        Jobs, JobSets, Secrets and immutable ConfigMaps are created once; an existing one is left unchanged. Everything
        else is applied server-side with one field manager, unless it is as it should be.

        Raises:
            NameTakenError: the name belongs to another owner, or an immutable ConfigMap has other content.
            ConflictError: a Job or JobSet of this adaptation has the name and was created from another spec or profile;
                it is observed from now on.
            CannotCreateError: a quota, a policy, missing rights, or a kind that is not installed.
        """
        ...

    def can_create(self, key: Key, manifest: Manifest) -> bool:
        """Return whether the name of an object that is created once is free, without creating it.

        For a Secret, which may not be read.

        Raises:
            CannotCreateError: as `apply`.
        """
        ...

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object and what it owns; no effect if it is absent.

        Pods get SIGTERM and their grace period. A Job is gone only when its pods are, so that their termination
        messages can still be read.
        """
        ...

    def write_status(self, key: Key, status: Manifest, resource_version: str) -> None:
        """Replace the status.

        Raises:
            ConflictError: `resource_version` is not the stored one.
        """
        ...

    def record(self, key: Key, event: Event) -> None:
        """Post an Event."""
        ...
