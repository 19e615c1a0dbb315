"""Starts the parts of the operator in order, and finds what the watches have missed; runs in a thread of its own.

The order of the start: list until the objects of one namespace at least are known, watch, take the Lease, list once
more, work. So nothing is decided about an adaptation before all of its objects are known, and no two operators write at
the same time. A namespace that cannot be listed is reported and tried again; its adaptations wait, and no others do.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from dapt_operator.api.v1alpha1.conditions import FINISHED
from dapt_operator.cluster.kubernetes import KubernetesCluster, Leadership, Store
from dapt_operator.cluster.port import Key
from dapt_operator.launchers.observe.run_states import true_conditions
from dapt_operator.runtime.settings import Settings
from dapt_operator.runtime.watching.watched_kinds import WatchedKind, watched_kind
from dapt_operator.runtime.watching.watches import Watch
from dapt_operator.runtime.work_queue import Urgency, WorkQueue
from dapt_operator.stage_run import Manifest

log = structlog.get_logger("dapt.operator")

API_RETRY_SECONDS: Final = 2.0
"""Pause until the API server is asked again after it did not answer."""
TICK_SECONDS: Final = 1.0
"""Interval at which it is checked whether a list is due."""
GAP_SECONDS: Final = 5.0
"""Pause between the begin of a watch and the lists that find what it has missed: its own list takes a moment."""


class Control:
    """Lists, watches, waits for the Lease and starts the work queue."""

    def __init__(
        self,
        settings: Settings,
        server: str,
        cluster: KubernetesCluster,
        store: Store,
        lease: Leadership,
        queue: WorkQueue[Key],
    ) -> None:
        """
        Args:
            settings: of the operator.
            server: URL of the API server, for the log.
            cluster: lists.
            store: holds what was listed.
            lease: started after the first lists.
            queue: started once the Lease is held.
        """
        self._settings = settings
        self._server = server
        self._cluster = cluster
        self._store = store
        self._lease = lease
        self._queue = queue
        self._is_unreachable = False
        self._failures: dict[tuple[str, str], str] = {}
        """Errors of the lists that cannot be read, as they were logged, by kind and namespace."""
        self._next_visit = 0.0
        self._changes = itertools.count(1)
        """Numbers of all changes, so that no two have the same."""
        self._newest_changes: dict[Key, int] = {}

    @property
    def scopes(self) -> tuple[str | None, ...]:
        """What has watches of its own: each namespace, and None for the whole cluster."""
        return (None, *self._settings.namespaces)

    @property
    def _keys(self) -> tuple[Key, ...]:
        return self._store.keys()

    @property
    def has_listed(self) -> bool:
        """Whether everything that decisions depend on was listed, in one namespace at least."""
        lists = self._cluster.lists
        return any(lists.has_listed(namespace) for namespace in self._settings.namespaces or ("",))

    def wake(self, key: Key, after_seconds: float = 0.0, urgency: Urgency = Urgency.CHANGE) -> None:
        """Wake an adaptation, unless its namespace has not been listed yet: then the list wakes it."""
        if self._cluster.lists.has_listed(key.namespace):
            self._queue.wake(key, after_seconds, urgency)

    def note_change(self, key: Key) -> None:
        """Note a change of an adaptation, of its objects or of their readings; called before the wake for it."""
        self._newest_changes[key] = next(self._changes)

    def newest_change(self, key: Key) -> int:
        """Return the number of the newest change of an adaptation that was reported or found; 0 for none."""
        return self._newest_changes.get(key, 0)

    def find_kinds(self, scope: str | None) -> tuple[WatchedKind, ...]:
        """Return the kinds that can be watched: those that could be listed last. JobSets come and go with their
        controller, and every kind with our rights."""
        return tuple(watched_kind(kind) for kind in self._cluster.lists.listable_kinds(scope))

    def note_gap(self, scope: str | None) -> None:
        """List soon: deletions may have happened that the watches of a namespace do not report."""
        self._cluster.lists.request(scope, GAP_SECONDS)

    def run(self, watches: tuple[Watch, ...], on_lost: Callable[[], None], ending: threading.Event) -> None:
        """Start everything; list and visit until `ending` is set.

        Args:
            watches: started after the first lists.
            on_lost: called when another process has taken the Lease.
            ending: set when the operator ends.
        """
        # 1. Know all objects before anything is decided.
        if not self._list_until_it_works(ending):
            return
        for watch in watches:
            watch.start()
        # 2. Write nothing before the Lease is held.
        self._lease.start(on_lost=on_lost)
        if not self._wait_for_lease(ending):
            return
        # 3. Reconcile every adaptation once, finished ones too: their clean-up may be due.
        keys = self._keys
        log.info("acting", adaptations=len(keys), lease=self._settings.lease_title)
        for key in keys:
            self.wake(key, urgency=Urgency.ROUTINE)
        self._next_visit = time.monotonic() + self._settings.resync_seconds
        self._queue.start()
        # 4. Find what the watches have missed.
        checked_at = time.monotonic()
        while not ending.wait(min(TICK_SECONDS, self._settings.resync_seconds)):
            self._list_due()
            if time.monotonic() >= self._next_visit:
                self._visit()
            if time.monotonic() - checked_at >= TICK_SECONDS:
                checked_at = time.monotonic()
                for watch in watches:
                    watch.check()

    def _list_until_it_works(self, ending: threading.Event) -> bool:
        """List until one namespace is known; return False if the operator was stopped before that."""
        while not ending.is_set():
            self._list_due()
            if self.has_listed:
                return True
            ending.wait(API_RETRY_SECONDS)
        return False

    def _wait_for_lease(self, ending: threading.Event) -> bool:
        """Return whether the Lease was taken. The store is kept up to date meanwhile, so that taking over is quick."""
        # Mostly it is free or our own: then no line is logged about waiting.
        if self._lease.wait(1.0):
            return True
        log.info("waiting for the Lease: another operator acts", lease=self._settings.lease_title)
        while not ending.is_set():
            if self._lease.wait(0.5):
                # The other operator may have written until a moment ago.
                self._cluster.lists.request_all()
                self._list_due()
                return True
            self._list_due()
        return False

    def _list_due(self) -> None:
        """Read the lists that are due; wake the adaptations whose changes no watch has reported."""
        lists = self._cluster.lists
        known = {namespace for namespace in self._settings.namespaces or ("",) if lists.has_listed(namespace)}
        found = lists.list_due(self._settings.resync_seconds)
        self._log_failures(found.unreachable)
        for key in found.changed:
            self.note_change(key)
            self.wake(key)
        for key in self._keys:
            # Its namespace has just become known: wakes before that were left out.
            if (key.namespace if self._settings.namespaces else "") not in known:
                self.wake(key, urgency=Urgency.ROUTINE)

    def _visit(self) -> None:
        """Wake all adaptations that are not settled: a plan may depend on what nothing reports."""
        self._next_visit = time.monotonic() + self._settings.resync_seconds
        keys = set(self._keys)
        # What is gone must not stay for the life of the process.
        for gone in [key for key in tuple(self._newest_changes) if key not in keys]:
            self._newest_changes.pop(gone, None)
        unsettled = [key for key in self._keys if not is_settled(self._store.resource(key))]
        # Spread over half the interval, so that an urgent reconcile finds a free thread meanwhile.
        spread_seconds = self._settings.resync_seconds / 2
        for number, key in enumerate(unsettled):
            self.wake(key, spread_seconds * number / len(unsettled), Urgency.ROUTINE)

    def _log_failures(self, unreachable: str | None) -> None:
        """Log each outage of the API server, and each list that cannot be read, once."""
        if unreachable is None:
            return
        if unreachable and not self._is_unreachable:
            event = "the API server cannot be reached, retrying until it can"
            if not self.has_listed:
                event = "the API server cannot be used yet, retrying until it can"
            log.warning(event, server=self._server, error=unreachable)
        if self._is_unreachable and not unreachable:
            log.info("the API server can be used")
        self._is_unreachable = bool(unreachable)
        failures = {}
        for failure in self._cluster.lists.failures():
            place = (failure.kind, failure.namespace)
            if failure.is_unreachable:
                continue  # the line above says so
            failures[place] = failure.error
            if self._failures.get(place) != failure.error:
                log.warning(
                    "objects cannot be listed, trying again",
                    kind=failure.kind,
                    namespace=failure.namespace or "all",
                    error=failure.error,
                )
        for kind, namespace in self._failures.keys() - failures.keys():
            log.info("objects can be listed again", kind=kind, namespace=namespace or "all")
        self._failures = failures


def is_finished(resource: Manifest | None) -> bool:
    """Whether nothing will ever run again for a resource."""
    return resource is not None and FINISHED in true_conditions(resource)


def is_settled(resource: Manifest | None) -> bool:
    """Whether nothing is left to do for a resource, unless it changes: it has finished, and was cleaned up if so
    requested."""
    try:
        if resource is None or not is_finished(resource):
            return False
        cleanup, ledger = resource["spec"].get("cleanup") or {}, resource["status"].get("ledger") or {}
        return cleanup.get("afterSeconds") is None or ledger.get("cleaned") is not None
    except (AttributeError, KeyError, TypeError):
        return False  # the reconcile reports what is wrong with it
