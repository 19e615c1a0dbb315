"""The operator as a whole: what it is put together from, how it starts, and how it ends.

The order of the start: serve health, wait until the API server answers, list everything, watch, get the Lease, list
once more, work. So nothing is decided before everything is known, and nothing is written by two operators at once.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import structlog
from kubernetes.client import ApiClient, ApiException, Configuration
from prometheus_client import CollectorRegistry
from urllib3.exceptions import HTTPError

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.api.v1alpha1.conditions import FINISHED
from dapt_operator.cluster.kubernetes import ApiError, KubernetesCluster, Leadership, NotLeaderError, Store
from dapt_operator.cluster.port import Key
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.reconcile import reconcile
from dapt_operator.runtime.http_server import Pages
from dapt_operator.runtime.metrics import Adaptations, Meter
from dapt_operator.runtime.settings import JOBSETS, WATCHED, Settings
from dapt_operator.runtime.watches import Watches
from dapt_operator.runtime.work_queue import WorkQueue

log = structlog.get_logger("dapt.operator")

API_AGAIN_SECONDS = 2.0
"""Until the API server is asked again when it did not answer."""
FINISH_SECONDS = 3.0
"""For the reconciles that go on when the operator is asked to stop; each is a few requests."""
END_SECONDS = 4.0
"""By then the process has ended, whatever hangs: nothing needs an orderly end to be safe."""

STOP, BROKEN = "stop", "broken"


class Service:
    """One operator process."""

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        """Nothing is started yet, and no request is made."""
        self._settings = settings
        api = ApiClient(configuration)
        api.user_agent = f"dapt-operator/{PRODUCT_VERSION}"
        self._api = api
        self._store = Store()
        self._lease = Leadership(api, settings.lease_namespace, settings.lease_name, settings.identity)
        self._queue: WorkQueue[Key] = WorkQueue(
            self._reconcile, workers=settings.workers, on_error=self._tell_error
        )
        self._cluster = KubernetesCluster(
            api,
            self._store,
            on_change=self._queue.wake,
            may_write=self._lease.is_held,
            namespaces=settings.namespaces,
        )
        notes = _Notes(self._store, self._queue.wake)
        self._watches = Watches(notes, configuration, self._kinds, settings.namespaces)
        self._registry = CollectorRegistry()
        self._registry.register(Adaptations(self._store.resources))
        self._meter = Meter(self._registry)
        self._ends: queue.SimpleQueue[str] = queue.SimpleQueue()  # may be put into from a signal handler
        self._ending = threading.Event()
        self._listed = False
        self._with_jobsets = False
        self._conductor = threading.Thread(target=self._guarded, name="conductor", daemon=True)

    def run(self) -> int:
        """Until SIGTERM or SIGINT (0), or until the Lease was lost or a part broke (1).

        Raises:
            PortTaken: nothing was started.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ends.put(STOP))
        with Pages(
            self._settings.port, alive=self._alive, ready=self._ready, registry=self._registry
        ) as pages:
            log.info(
                "started",
                version=PRODUCT_VERSION,
                instance=self._settings.instance,
                namespaces=list(self._settings.namespaces) or "all",
                port=pages.port,
            )
            self._conductor.start()
            why = self._ends.get()
            if why == STOP:
                self._stop()
                return 0
        return 1

    # --- health ---

    def _alive(self) -> str:
        parts = {
            "a reconcile thread": self._queue.is_healthy,
            "the watches": self._watches.is_healthy,
            "the resync": self._conductor.ident is None or self._conductor.is_alive(),
        }
        return ", ".join(f"{name} ended" for name, healthy in parts.items() if not healthy)

    def _ready(self) -> str:
        return "" if self._listed else "the cluster's objects have not been listed yet"

    # --- the conductor's thread ---

    def _guarded(self) -> None:
        try:
            self._conduct()
        except Exception:
            log.exception("the operator cannot go on and ends")
            self._ends.put(BROKEN)

    def _conduct(self) -> None:
        if not self._list_until_it_works():
            return
        self._watches.start()
        self._lease.start(on_lost=self._lease_lost)
        if not self._wait_for_lease():
            return
        keys = self._store.keys()
        log.info("acting", adaptations=len(keys), lease=self._lease_title)
        for key in keys:  # the finished ones too: their clean-up may be due
            self._queue.wake(key)
        self._queue.start()
        while not self._ending.wait(self._settings.resync_seconds):
            self._resync()
            self._watches.check()

    @property
    def _lease_title(self) -> str:
        return f"{self._settings.lease_namespace}/{self._settings.lease_name}"

    def _list_until_it_works(self) -> bool:
        told = ""
        while not self._ending.is_set():
            try:
                self._cluster.resync()
            except ApiError as error:
                if str(error) != told:
                    told = str(error)
                    log.warning(
                        "the API server cannot be used yet; trying until it can",
                        server=self._api.configuration.host,
                        error=told,
                    )
                self._ending.wait(API_AGAIN_SECONDS)
                continue
            if told:
                log.info("the API server can be used")
            self._listed = True
            return True
        return False

    def _wait_for_lease(self) -> bool:
        """Whether it was got; meanwhile the store is kept fresh, so that taking over is quick."""
        if self._lease.wait(1.0):
            return True
        log.info("waiting for the Lease: another operator acts", lease=self._lease_title)
        listed = time.monotonic()
        while not self._ending.is_set():
            if self._lease.wait(0.5):
                self._resync()
                return True
            if time.monotonic() - listed >= self._settings.resync_seconds:
                self._resync()
                listed = time.monotonic()
        return False

    def _resync(self) -> None:
        """List everything, and wake whose objects had changed unnoticed, and all that have not finished."""
        try:
            changed = self._cluster.resync()
        except ApiError as error:
            log.warning("listing everything anew failed; the next time comes by itself", error=str(error))
            return
        keys = self._store.keys()
        unfinished = [key for key in keys if not is_finished(self._store.resource(key))]
        for key in changed:
            self._queue.wake(key)
        spread = self._settings.resync_seconds / 2  # so that what is urgent finds a free thread meanwhile
        for number, key in enumerate(unfinished):
            self._queue.wake(key, spread * number / len(unfinished))

    def _kinds(self) -> tuple[tuple[str, str, str], ...]:
        """What can be watched now: JobSets come and go with their controller and with our rights."""
        group, version, plural = JOBSETS
        place = f"namespaces/{self._settings.namespaces[0]}/" if self._settings.namespaces else ""
        status = self._status_of(f"/apis/{group}/{version}/{place}{plural}")
        if status in (200, 403, 404):  # anything else tells nothing new
            self._with_jobsets = status == 200
        return (*WATCHED, JOBSETS) if self._with_jobsets else WATCHED

    def _status_of(self, path: str) -> int:
        """Status of a list of one; 0 without an answer."""
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
        response.release_conn()
        return int(response.status)

    # --- the queue's threads ---

    def _reconcile(self, key: Key) -> float | None:
        begun = time.monotonic()
        try:
            with self._meter.duration.time():
                plan = reconcile(self._cluster, key, LAUNCHERS, local=False, instance=self._settings.instance)
        except NotLeaderError:
            return None
        tell = log.debug if plan.is_empty else log.info
        tell(
            "reconciled",
            namespace=key.namespace,
            name=key.name,
            seconds=round(time.monotonic() - begun, 4),
            **plan.fields(),
        )
        return plan.requeue_after

    def _tell_error(self, key: Key, error: Exception, delay: float) -> None:
        self._meter.errors.inc()
        log.error(
            "a look failed and is repeated",
            namespace=key.namespace,
            name=key.name,
            error=f"{type(error).__name__}: {error}",
            again_after_seconds=delay,
            exc_info=None if isinstance(error, ApiError) else error,
        )

    # --- ends ---

    def _lease_lost(self) -> None:
        if self._ending.is_set():
            return
        log.error("the Lease was lost: another operator may act, so this one ends", lease=self._lease_title)
        end_process(1)  # at once: a thread that goes on might write

    def _stop(self) -> None:
        log.info("stopping")
        threading.Thread(target=_end_after, args=(END_SECONDS,), daemon=True).start()
        self._ending.set()
        finished = self._queue.stop(FINISH_SECONDS)
        if finished:
            self._lease.stop()  # only now: until the last reconcile has ended nobody else may act
        self._watches.stop(0.5)
        self._cluster.close()
        log.info("stopped", finished=finished)


class _Notes:
    """Takes kopf's notes into the store, and wakes whom they concern."""

    def __init__(self, store: Store, wake: Callable[[Key], None]) -> None:
        self._store = store
        self._wake = wake

    def put(self, body: Mapping[str, Any]) -> None:
        self._told(body, self._store.put(body))

    def remove(self, body: Mapping[str, Any]) -> None:
        self._told(body, self._store.remove(body))

    def _told(self, body: Mapping[str, Any], key: Key | None) -> None:
        if key is not None:
            self._wake(key)
        if body.get("kind") == "AdaptationProfile":
            for one in self._store.keys_of_profile(body["metadata"]["name"]):
                self._wake(one)


def is_finished(resource: Mapping[str, Any] | None) -> bool:
    """Whether nothing will ever run again for it."""
    conditions = ((resource or {}).get("status") or {}).get("conditions") or ()
    return any(one.get("type") == FINISHED and one.get("status") == "True" for one in conditions)


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    end_process(0)


def end_process(code: int) -> NoReturn:
    """End at once, what was printed excepted.

    Python's own way out waits for the executors of kopf's loop, and ends other threads wherever they are, locks in
    their hands: what hangs then nobody ends any more.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
