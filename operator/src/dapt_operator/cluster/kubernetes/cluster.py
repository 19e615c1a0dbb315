"""The five verbs on Kubernetes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kubernetes.client

from dapt_operator.api.run import Manifest
from dapt_operator.cluster.kubernetes.store import Store
from dapt_operator.cluster.port import Event, Key, ObjectReference, World


class KubernetesCluster:
    """The port; synchronous, to be used from any number of threads."""

    def __init__(
        self,
        api: kubernetes.client.ApiClient,
        store: Store,
        *,
        on_change: Callable[[Key], None],
        may_write: Callable[[], bool] = lambda: True,
        namespaces: Sequence[str] = (),
    ) -> None:
        """
        Args:
            api: configured client; one for the whole process, its connections are pooled.
            store: filled by watches too.
            on_change: called from other threads when something changed that no watch tells (a live reading, logs).
            may_write: asked right before each write; when it says no, the verb raises NotLeader.
            namespaces: empty for all.
        """

    def observe(self, key: Key) -> World:
        """Gather everything that a plan may depend on."""
        raise NotImplementedError

    def apply(self, key: Key, manifest: Manifest) -> None:
        """Make an object exist."""
        raise NotImplementedError

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object and what it owns."""
        raise NotImplementedError

    def write_status(self, key: Key, status: Mapping[str, Any], resource_version: str) -> None:
        """Replace the status."""
        raise NotImplementedError

    def record(self, key: Key, event: Event) -> None:
        """Post an Event; failing to is logged."""
        raise NotImplementedError

    def resync(self) -> set[Key]:
        """List everything anew; returns the adaptations whose objects changed unnoticed."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the threads; verbs must not be called any more."""
