"""Thread-safe memory of what watches, lists and own writes say."""

from __future__ import annotations

from collections.abc import Iterable

from dapt_operator.api.run import Manifest
from dapt_operator.cluster.port import Key


class Store:
    """The newest known version of every resource, profile, Job, JobSet and pod of ours."""

    def put(self, body: Manifest) -> Key | None:
        """Take a version of an object; the newer resource version wins.

        Returns:
            The adaptation concerned; None when the object is not ours, is a profile, or says nothing new.
        """
        raise NotImplementedError

    def remove(self, body: Manifest) -> Key | None:
        """Forget a deleted object; returns the adaptation concerned."""
        raise NotImplementedError

    def replace(self, kind: str, bodies: Iterable[Manifest], resource_version: str | None = None) -> set[Key]:
        """Take a full list; what is not in it and not younger than it goes.

        Returns:
            Adaptations whose objects changed.
        """
        raise NotImplementedError

    def keys(self) -> tuple[Key, ...]:
        """Of all DomainAdaptations."""
        raise NotImplementedError

    def resources(self) -> tuple[Manifest, ...]:
        """All DomainAdaptations. Read only."""
        raise NotImplementedError

    def resource(self, key: Key) -> Manifest | None:
        """One DomainAdaptation. Read only."""
        raise NotImplementedError

    def profiles(self) -> tuple[Manifest, ...]:
        """All AdaptationProfiles. Read only."""
        raise NotImplementedError

    def keys_of_profile(self, name: str) -> tuple[Key, ...]:
        """Adaptations that a change of this profile concerns: those that name it, and those that name none."""
        raise NotImplementedError
