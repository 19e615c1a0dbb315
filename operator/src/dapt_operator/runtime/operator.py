"""Puts the operator together from its parts, starts it and ends it.

The way from a watch event to a reconcile:

1. kopf reports an object (`watches.py`, `handlers.py`) to `StoreUpdater`,
2. which puts it into the store and wakes the adaptation that it belongs to,
3. the work queue (`work_queue.py`) calls `Operator.reconcile_one` for that adaptation in one of its threads,
4. which calls `dapt_operator.reconcile`: observe (from the store), decide, apply. The answers to its writes go into
   the store too.

`Operator._control` runs alongside, in its own thread. The order of its start: wait until the API server answers, list
everything, watch, take the Lease, list once more, work. So nothing is decided before all objects are known, and no two
operators write at the same time.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NoReturn

import structlog
from kubernetes.client import ApiClient, ApiException, Configuration
from prometheus_client import CollectorRegistry
from urllib3.exceptions import HTTPError

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.api.v1alpha1.conditions import FINISHED
from dapt_operator.cluster.kubernetes import ApiError, KubernetesCluster, Leadership, NotLeaderError, Store
from dapt_operator.cluster.port import Key
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.launchers.observe.run_states import true_conditions
from dapt_operator.reconcile import reconcile
from dapt_operator.runtime.http_server import MonitoringServer
from dapt_operator.runtime.metrics import AdaptationCollector, ReconcileMetrics
from dapt_operator.runtime.settings import Settings
from dapt_operator.runtime.watched_kinds import JOBSETS, WATCHED, WatchedKind
from dapt_operator.runtime.watches import Watches
from dapt_operator.runtime.work_queue import WorkQueue
from dapt_operator.stage_run import Manifest

log = structlog.get_logger("dapt.operator")

API_RETRY_SECONDS: Final = 2.0
"""Pause until the API server is asked again after it did not answer."""
FINISH_SECONDS: Final = 3.0
"""Time for the running reconciles when the operator is stopped; each is a few requests."""
END_SECONDS: Final = 4.0
"""The process ends this long after a stop request, whatever hangs: no part needs an orderly end to be safe."""


class _End(StrEnum):
    """Why the operator ends."""

    STOPPED = "stopped"
    FAILED = "failed"


class StoreUpdater:
    """Puts watched objects into the store and wakes the adaptations that they belong to."""

    def __init__(self, store: Store, wake: Callable[[Key], None]) -> None:
        self._store = store
        self._wake = wake

    def put(self, body: Manifest) -> None:
        """Store an object that exists or has changed."""
        self._wake_affected(body, self._store.put(body))

    def remove(self, body: Manifest) -> None:
        """Remove a deleted object from the store."""
        self._wake_affected(body, self._store.remove(body))

    def _wake_affected(self, body: Manifest, key: Key | None) -> None:
        if key is not None:
            self._wake(key)
        if body.get("kind") == "AdaptationProfile":
            for key_of_profile in self._store.keys_of_profile(body["metadata"]["name"]):
                self._wake(key_of_profile)


class Operator:
    """One operator process."""

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        """Create the parts; start nothing and send no request."""
        self._settings = settings
        api = ApiClient(configuration)
        api.user_agent = f"dapt-operator/{PRODUCT_VERSION}"
        self._api = api
        self._store = Store()
        self._lease = Leadership(api, settings.lease_namespace, settings.lease_name, settings.identity)
        self._queue: WorkQueue[Key] = WorkQueue(
            self.reconcile_one, workers=settings.workers, on_error=self.report_error
        )
        self._cluster = KubernetesCluster(
            api,
            self._store,
            on_change=self._queue.wake,
            may_write=self._lease.is_held,
            namespaces=settings.namespaces,
        )
        updater = StoreUpdater(self._store, self._queue.wake)
        self._watches = Watches(updater, configuration, self._watchable_kinds, settings.namespaces)
        self.registry = CollectorRegistry()
        """Everything that /metrics serves."""
        self.registry.register(AdaptationCollector(self._store.resources))
        self._metrics = ReconcileMetrics(self.registry)
        # A SimpleQueue, because its put may be called from a signal handler.
        self._ends: queue.SimpleQueue[_End] = queue.SimpleQueue()
        self._ending = threading.Event()
        self.has_listed = False
        """Whether the store holds everything that exists."""
        self._has_jobsets = False
        self._control_thread = threading.Thread(target=self._control_or_fail, name="control", daemon=True)

    def run(self) -> int:
        """Run until SIGTERM or SIGINT (returns 0), or until a part has failed (returns 1).

        Raises:
            PortTakenError: nothing was started.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ends.put(_End.STOPPED))
        with MonitoringServer(
            self._settings.port, alive=self._alive, ready=self.readiness, registry=self.registry
        ) as server:
            log.info(
                "started",
                version=PRODUCT_VERSION,
                instance=self._settings.instance,
                namespaces=list(self._settings.namespaces) or "all",
                port=server.port,
            )
            self._control_thread.start()
            if self._ends.get() is _End.STOPPED:
                self._stop()
                return 0
        return 1

    # --- the reconcile, in the queue's threads ---

    def reconcile_one(self, key: Key) -> float | None:
        """Reconcile one adaptation; return the seconds until it is due again, None if only a change makes it so."""
        started = time.monotonic()
        try:
            with self._metrics.duration.time():
                plan = reconcile(self._cluster, key, LAUNCHERS, local=False, instance=self._settings.instance)
        except NotLeaderError:
            # The Lease was lost during the reconcile. The next operator reconciles the same adaptation.
            return None
        write_line = log.debug if plan.is_empty else log.info
        write_line(
            "reconciled",
            namespace=key.namespace,
            name=key.name,
            seconds=round(time.monotonic() - started, 4),
            **plan.fields(),
        )
        return plan.requeue_after

    def report_error(self, key: Key, error: Exception, delay_seconds: float) -> None:
        """Count and log a reconcile that failed and is repeated after so many seconds."""
        self._metrics.errors.inc()
        log.error(
            "reconcile failed, retrying",
            namespace=key.namespace,
            name=key.name,
            error=f"{type(error).__name__}: {error}",
            again_after_seconds=delay_seconds,
            exc_info=None if isinstance(error, ApiError) else error,
        )

    # --- start and resync, in the control thread ---

    def _control_or_fail(self) -> None:
        try:
            self._control()
        except Exception:
            log.exception("the operator has failed and ends")
            self._ends.put(_End.FAILED)

    def _control(self) -> None:
        # 1. Know all objects before anything is decided.
        if not self._list_until_it_works():
            return
        self._watches.start()
        # 2. Write nothing before the Lease is held.
        self._lease.start(on_lost=self._end_without_lease)
        if not self._wait_for_lease():
            return
        # 3. Reconcile every adaptation once, finished ones too: their clean-up may be due.
        keys = self._store.keys()
        log.info("acting", adaptations=len(keys), lease=self._lease_title)
        for key in keys:
            self._queue.wake(key)
        self._queue.start()
        # 4. Find what the watches have missed.
        while not self._ending.wait(self._settings.resync_seconds):
            self._resync()
            self._watches.check()

    @property
    def _lease_title(self) -> str:
        return f"{self._settings.lease_namespace}/{self._settings.lease_name}"

    def _list_until_it_works(self) -> bool:
        """List everything; return False if the operator was stopped before that worked."""
        last_error = ""
        while not self._ending.is_set():
            try:
                self._cluster.resync()
            except ApiError as error:
                # One line for each error, not one for each attempt.
                if str(error) != last_error:
                    last_error = str(error)
                    log.warning(
                        "the API server cannot be used yet, retrying until it can",
                        server=self._api.configuration.host,
                        error=last_error,
                    )
                self._ending.wait(API_RETRY_SECONDS)
                continue
            if last_error:
                log.info("the API server can be used")
            self.has_listed = True
            return True
        return False

    def _wait_for_lease(self) -> bool:
        """Return whether the Lease was taken. The store is kept up to date meanwhile, so that taking over is quick."""
        # Mostly it is free or our own: then no line is logged about waiting.
        if self._lease.wait(1.0):
            return True
        log.info("waiting for the Lease: another operator acts", lease=self._lease_title)
        listed_at = time.monotonic()
        while not self._ending.is_set():
            if self._lease.wait(0.5):
                # The other operator may have written until a moment ago.
                self._resync()
                return True
            if time.monotonic() - listed_at >= self._settings.resync_seconds:
                self._resync()
                listed_at = time.monotonic()
        return False

    def _resync(self) -> None:
        """List everything; wake the adaptations whose changes no watch has reported, and all that are unfinished."""
        try:
            changed = self._cluster.resync()
        except ApiError as error:
            log.warning("the resync failed, the next one follows", error=str(error))
            return
        keys = self._store.keys()
        unfinished = [key for key in keys if not is_finished(self._store.resource(key))]
        for key in changed:
            self._queue.wake(key)
        # Spread over half the interval, so that an urgent reconcile finds a free thread meanwhile.
        spread_seconds = self._settings.resync_seconds / 2
        for number, key in enumerate(unfinished):
            self._queue.wake(key, spread_seconds * number / len(unfinished))

    def _watchable_kinds(self) -> tuple[WatchedKind, ...]:
        """Return the kinds that can be watched now. JobSets come and go with their controller and with our rights."""
        namespace = f"namespaces/{self._settings.namespaces[0]}/" if self._settings.namespaces else ""
        status = self._status_of(f"/apis/{JOBSETS.group}/{JOBSETS.version}/{namespace}{JOBSETS.plural}")
        # Any other status, such as that of an overloaded server, says nothing about JobSets.
        if status in (200, 403, 404):
            self._has_jobsets = status == 200
        return (*WATCHED, JOBSETS) if self._has_jobsets else WATCHED

    def _status_of(self, path: str) -> int:
        """Return the HTTP status of listing one object; 0 without an answer."""
        try:
            response = self._api.call_api(
                path,
                "GET",
                query_params=[("limit", "1")],
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=(5, 10),
            )
        except ApiException as error:
            return int(error.status or 0)
        except (HTTPError, OSError):
            return 0
        # Its content was not read: without this the connection would not return to the pool.
        response.release_conn()
        return int(response.status)

    # --- health ---

    def _alive(self) -> str:
        parts = {
            "a reconcile thread": self._queue.is_healthy,
            "the watches": self._watches.is_healthy,
            "the resync": self._control_thread.ident is None or self._control_thread.is_alive(),
        }
        return ", ".join(f"{name} ended" for name, is_healthy in parts.items() if not is_healthy)

    def readiness(self) -> str:
        """Return why the operator is not ready; empty when it is."""
        return "" if self.has_listed else "the cluster's objects have not been listed yet"

    # --- ends ---

    def _end_without_lease(self) -> None:
        if self._ending.is_set():
            return
        log.error("the Lease was lost: another operator may act, so this one ends", lease=self._lease_title)
        end_process(1)  # at once: a thread that continues might write

    def _stop(self) -> None:
        log.info("stopping")
        # First, so that the process ends in time whatever hangs below.
        threading.Thread(target=_end_after, args=(END_SECONDS,), daemon=True).start()
        self._ending.set()
        has_finished = self._queue.stop(FINISH_SECONDS)
        # Released only now, and only if no reconcile is running: until then no other operator may act.
        if has_finished:
            self._lease.stop()
        self._watches.stop(0.5)
        self._cluster.close()
        log.info("stopped", finished=has_finished)


def is_finished(resource: Manifest | None) -> bool:
    """Whether nothing will ever run again for a resource."""
    return resource is not None and FINISHED in true_conditions(resource)


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    end_process(0)


def end_process(code: int) -> NoReturn:
    """End the process at once, after flushing what was printed.

    Python's own exit waits for the executors of kopf's loop, and stops other threads wherever they are, also with a
    lock held: a thread that hangs then would keep the process from ending.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
