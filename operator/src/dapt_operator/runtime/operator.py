"""Puts the operator together from its parts, starts it and ends it.

The way from a watch event to a reconcile:

1. kopf reports an object (`watching/`) to `StoreUpdater`,
2. which puts it into the store and wakes the adaptation that it belongs to,
3. the work queue (`work_queue.py`) calls `Operator.reconcile_one` for that adaptation in one of its threads,
4. which calls `dapt_operator.reconcile`: observe (from the store), decide, apply. The answers to its writes go into
   the store too.

`Control.run` runs alongside, in its own thread: it starts the parts in order, and lists what the watches may have
missed.
"""

from __future__ import annotations

import functools
import math
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NoReturn

import structlog
from prometheus_client import CollectorRegistry, generate_latest

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.api.v1alpha1.conditions import INTERNAL_ERROR
from dapt_operator.api.v1alpha1.events import EVENTS
from dapt_operator.cluster.errors import ClusterError
from dapt_operator.cluster.kubernetes import (
    ApiError,
    Connection,
    KubernetesCluster,
    Leadership,
    NotLeaderError,
    RequestRefusedError,
    Store,
    Summary,
)
from dapt_operator.cluster.port import Event, Key
from dapt_operator.last_plans import LastPlans
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.plan.status.internal_error import error_message, internal_error_conditions
from dapt_operator.reconcile import reconcile
from dapt_operator.runtime.control import Control
from dapt_operator.runtime.http_server import MonitoringServer
from dapt_operator.runtime.metrics import ReconcileMetrics, exposition, summarize
from dapt_operator.runtime.operator_metrics import OperatorCollector, ProcessCollector, ProcessState
from dapt_operator.runtime.settings import Settings
from dapt_operator.runtime.watching.store_updater import StoreUpdater
from dapt_operator.runtime.watching.watches import Watch
from dapt_operator.runtime.work_queue import Urgency, WorkQueue

log = structlog.get_logger("dapt.operator")

NOT_LEADER_SECONDS: Final = 1.0
"""Pause until a reconcile that was refused without the Lease is tried again: the Lease is renewed more seldom."""
INTERNAL_ERRORS: Final = 3
"""Failures in a row after which an adaptation reports an internal error: one that passes at once is not worth it."""
FINISH_SECONDS: Final = 3.0
"""Time for the running reconciles when the operator is stopped; each is a few requests."""
END_SECONDS: Final = 4.0
"""The process ends this long after a stop request, whatever hangs: no part needs an orderly end to be safe."""


class _End(StrEnum):
    """Why the operator ends."""

    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class _Rest:
    """Until when an adaptation needs no reconcile, if nothing changes."""

    newest_change: int
    """Number of the newest change that had been reported when the reconcile began that found nothing to do."""
    until: float
    """On the monotonic clock; infinite: only a change ends it."""


class Operator:
    """One operator process."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        """Create the parts; start nothing and send no request."""
        self._settings = settings
        self._store = Store(summarize)
        self._lease = Leadership(connection, settings.lease_namespace, settings.lease_name, settings.identity)
        self._queue: WorkQueue[Key] = WorkQueue(
            self.reconcile_one, workers=settings.workers, on_error=self.report_error
        )
        self._cluster = KubernetesCluster(
            connection,
            self._store,
            on_change=self.notice,
            on_reading=lambda key: self.notice(key, urgency=Urgency.ROUTINE),
            may_write=self._lease.is_held,
            namespaces=settings.namespaces,
        )
        self._control = Control(
            settings, connection.server, self._cluster, self._store, self._lease, self._queue
        )
        updater = StoreUpdater(
            self._store, self.notice, settings.instance, self._cluster.lists.request_object
        )
        self._watches = tuple(
            Watch(
                updater,
                connection,
                find_kinds=functools.partial(self._control.find_kinds, scope),
                on_gap=functools.partial(self._control.note_gap, scope),
                namespace=scope,
            )
            for scope in self._control.scopes
        )
        self._registry = CollectorRegistry()
        """What the operator exports about itself; the adaptations' own series are written by `exposition`."""
        self._registry.register(
            OperatorCollector(self._summaries, settings.instance, self._cluster.lists.failures)
        )
        self._registry.register(
            ProcessCollector(
                ProcessState(
                    is_acting=self._lease.is_held,
                    queue_depth=lambda: self._queue.depth,
                    last_list=lambda: self._cluster.lists.oldest_list,
                )
            )
        )
        self._metrics = ReconcileMetrics(self._registry)
        # A SimpleQueue, because its put may be called from a signal handler.
        self._ends: queue.SimpleQueue[_End] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._rests: dict[Key, _Rest] = {}
        self._last_plans = LastPlans()
        self._failures: dict[Key, int] = {}
        """Number of unexpected failures in a row, by adaptation."""
        self._control_thread = threading.Thread(target=self._control_or_fail, name="control", daemon=True)

    def run(self) -> int:
        """Run until SIGTERM or SIGINT (returns 0), or until a part has failed (returns 1).

        Raises:
            PortTakenError: nothing was started.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ends.put(_End.STOPPED))
        with MonitoringServer(
            self._settings.port, alive=self._alive, ready=self.readiness, metrics=self.metrics_page
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
        newest_change = self._control.newest_change(key)
        rest = self._rests.pop(key, None)
        if rest is not None and rest.newest_change == newest_change and started < rest.until:
            # Nothing was reported since a reconcile that had nothing to do, and its next one is not due yet.
            self._rests[key] = rest
            return None if math.isinf(rest.until) else rest.until - started
        try:
            with self._metrics.duration.time():
                plan = reconcile(
                    self._cluster,
                    key,
                    LAUNCHERS,
                    local=False,
                    instance=self._settings.instance,
                    last_plans=self._last_plans,
                )
        except NotLeaderError:
            # The Lease could not be renewed for a moment. If another process has taken it, this one ends; else this
            # reconcile is the one that is still to be done, and nothing else would wake it.
            return NOT_LEADER_SECONDS
        except Exception as error:
            self._note_failure(key, error)
            raise
        self._failures.pop(key, None)
        if plan.is_empty:
            # The number from before it began: it may not have seen what was reported in the meantime.
            due = math.inf if plan.requeue_after is None else time.monotonic() + plan.requeue_after
            self._rests[key] = _Rest(newest_change, due)
        write_line = log.debug if plan.is_empty else log.info
        write_line(
            "reconciled",
            namespace=key.namespace,
            name=key.name,
            seconds=round(time.monotonic() - started, 4),
            **plan.fields(),
        )
        return plan.requeue_after

    def _note_failure(self, key: Key, error: Exception) -> None:
        """Let an adaptation report an error that does not pass, and that nobody would see outside the log."""
        # An API server that does not answer is no fault of the adaptation's, and one that refuses a write is.
        if isinstance(error, ClusterError) and not isinstance(error, RequestRefusedError):
            return
        self._failures[key] = self._failures.get(key, 0) + 1
        if self._failures[key] < INTERNAL_ERRORS:
            return
        message = error_message(error, PRODUCT_VERSION, self._settings.instance)
        try:
            is_new = self._cluster.change_conditions(
                key, lambda resource: internal_error_conditions(resource, message, datetime.now(UTC))
            )
            if is_new:
                self._cluster.record(key, Event(EVENTS[INTERNAL_ERROR][0], INTERNAL_ERROR, message))
        except Exception as failure:
            # The next failure tries it again; the caller gets the reconcile's own error.
            log.warning(
                "an internal error could not be reported in the status",
                namespace=key.namespace,
                name=key.name,
                error=f"{type(failure).__name__}: {failure}",
            )

    def report_error(self, key: Key, error: Exception, delay_seconds: float) -> None:
        """Count and log a failed reconcile, with the seconds until it is repeated."""
        self._metrics.errors.inc()
        log.error(
            "reconcile failed, retrying",
            namespace=key.namespace,
            name=key.name,
            error=f"{type(error).__name__}: {error}",
            again_after_seconds=delay_seconds,
            # Once in a row, since an error that stays comes again and again.
            exc_info=None if isinstance(error, ApiError) or self._failures.get(key, 0) > 1 else error,
        )

    def notice(self, key: Key, urgency: Urgency = Urgency.CHANGE) -> None:
        """Take note that something about an adaptation has changed, and wake it."""
        self._control.note_change(key)
        self._control.wake(key, urgency=urgency)

    # --- start and resync, in the control thread ---

    def _control_or_fail(self) -> None:
        try:
            self._control.run(self._watches, self._end_without_lease, self._ending)
        except Exception:
            log.exception("the operator has failed and ends")
            self._ends.put(_End.FAILED)

    # --- health ---

    def _alive(self) -> str:
        parts = {
            "a reconcile thread": self._queue.is_healthy,
            "the watches": all(watch.is_healthy for watch in self._watches),
            "the resync": self._control_thread.ident is None or self._control_thread.is_alive(),
            "the Lease's thread": self._lease.is_healthy,
        }
        return ", ".join(f"{name} ended" for name, is_healthy in parts.items() if not is_healthy)

    def readiness(self) -> str:
        """Return why the operator is not ready; empty when it is."""
        return "" if self._control.has_listed else "the cluster's objects have not been listed yet"

    # --- metrics ---

    def metrics_page(self) -> bytes:
        """Return what /metrics serves."""
        own: bytes = generate_latest(self._registry)
        return own + exposition(self._summaries())

    def _summaries(self) -> list[Summary]:
        # A process that waits for the Lease would export every series a second time.
        return self._store.summaries() if self._lease.has_been_held else []

    # --- ends ---

    def _end_without_lease(self) -> None:
        if self._ending.is_set():
            return
        log.error(
            "the Lease was lost: another operator may act, so this one ends", lease=self._settings.lease_title
        )
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
        # All at once, and then each for the time that is left.
        for timeout_seconds in (0.0, 0.5):
            for watch in self._watches:
                watch.stop(timeout_seconds)
        self._cluster.close()
        log.info("stopped", finished=has_finished)


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
