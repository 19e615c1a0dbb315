"""Puts watched objects into the store and wakes the adaptations that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import structlog

from dapt_operator.cluster.kubernetes import Store
from dapt_operator.cluster.kubernetes.cache.entry import RESOURCE, id_of
from dapt_operator.cluster.port import Key
from dapt_operator.launchers.observe.run_states import true_conditions
from dapt_operator.runtime.work_queue import Urgency
from dapt_operator.stage_run import Manifest

log = structlog.get_logger("dapt.operator")
_MAX_FOREIGN: Final = 10_000


class Wake(Protocol):
    """Wakes an adaptation."""

    def __call__(self, key: Key, *, urgency: Urgency) -> None:
        """Make the adaptation due now."""
        ...


class StoreUpdater:
    """Takes what watches report."""

    def __init__(
        self,
        store: Store,
        wake: Wake,
        instance: str = "",
        read: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        """
        Args:
            store: gets the objects.
            wake: called for each adaptation that is to be reconciled.
            instance: name of this installation; adaptations of others are logged once.
            read: called with kind, namespace and name of an object that the store has not in the newest version.
        """
        self._read = read
        self._store = store
        self._wake = wake
        self._instance = instance
        self._foreign: set[tuple[str, str]] = set()
        """Adaptations of other installations that were logged, by uid and owner."""

    def put(self, body: Manifest) -> None:
        """Store an object that exists or has changed."""
        self._wake_affected(body, self._store.put(body))
        self._log_if_foreign(body["metadata"], owner_of(body))

    def compare(self, body: Manifest) -> None:
        """Have an object of a list read, unless the store has it; of the body the kind and the metadata are known."""
        is_outdated, key = self._store.compare_item(body)
        if key is not None:
            self._wake(key, urgency=Urgency.CHANGE)
        object_id = id_of(body)
        if is_outdated:
            self._read(*object_id)
        elif object_id[0] == RESOURCE:
            self._log_if_foreign(body["metadata"], self._store.owner(Key(*object_id[1:])))

    def remove(self, body: Manifest) -> None:
        """Remove a deleted object from the store."""
        self._wake_affected(body, self._store.remove(body))

    def _wake_affected(self, body: Manifest, key: Key | None) -> None:
        if key is not None:
            self._wake(key, urgency=Urgency.FAILURE if has_failed(body) else Urgency.CHANGE)
        if body.get("kind") == "AdaptationProfile":
            for key_of_profile in self._store.keys_of_profile(body["metadata"]["name"]):
                self._wake(key_of_profile, urgency=Urgency.CHANGE)

    def _log_if_foreign(self, metadata: Manifest, owner: str) -> None:
        if not owner or not self._instance or owner == self._instance:
            return
        if (str(metadata.get("uid")), owner) in self._foreign:
            return
        if len(self._foreign) >= _MAX_FOREIGN:
            self._foreign.clear()  # a bound on memory; what is forgotten is logged once more
        self._foreign.add((str(metadata.get("uid")), owner))
        log.warning(
            "adaptation belongs to another installation and is left alone",
            namespace=metadata.get("namespace"),
            name=metadata.get("name"),
            owner=owner,
            instance=self._instance,
        )


def owner_of(resource: Manifest) -> str:
    """Return the installation that an adaptation belongs to; empty when none has reconciled it yet."""
    status = resource.get("status") if resource.get("kind") == "DomainAdaptation" else None
    digests = status.get("digests") if isinstance(status, dict) else None
    return str(digests.get("owner") or "") if isinstance(digests, dict) else ""


def has_failed(body: Manifest) -> bool:
    """Whether an object is a pod or a run that failed, so that accelerators may be idle."""
    status = body.get("status") or {}
    if body.get("kind") != "Pod":
        return body.get("kind") in ("Job", "JobSet") and "Failed" in true_conditions(body)
    ends = (
        ((item.get("state") or {}).get("terminated") or {}).get("exitCode")
        for item in status.get("containerStatuses") or []
    )
    return status.get("phase") == "Failed" or any(ends)
