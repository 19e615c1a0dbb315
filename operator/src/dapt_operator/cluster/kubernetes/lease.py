"""Ensures that one operator acts at a time, by a Lease of coordination.k8s.io/v1.

Why it is safe: a holder that has not renewed for `WRITE_SECONDS` starts no further write, and abandons one that it has
started after `client.ATTEMPT_SECONDS`. Together they are the Lease's duration, and another process takes the Lease only
after it has itself seen it unchanged for that long. Only intervals on monotonic clocks are compared, never the times of
day of two machines. (The leader election of the client library compares times of day, which jump, and cannot lock a
Lease.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from dapt_operator.cluster.kubernetes.client import ATTEMPT_SECONDS, ApiServerClient
from dapt_operator.cluster.kubernetes.connection import Connection
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.timestamps import micro_time
from dapt_operator.stage_run import JsonObject, Manifest

WRITE_SECONDS = 10.0
"""Time after its last renewal in which a holder may start a write."""
DURATION_SECONDS = int(WRITE_SECONDS + ATTEMPT_SECONDS)
RENEW_SECONDS = 2.5
ASK_SECONDS = 1.0
"""Pause between two attempts to take the Lease."""
RETRY_SECONDS = 0.5
"""Pause until the next attempt when a renewal failed."""
REQUEST_SECONDS: Final = 3.0
"""Limit of one request: a renewal that hangs is given up, and a second one too, before no write may start any more."""
HANG_SECONDS: Final = 60.0
"""The thread is taken for dead when it began no attempt for so long: each of its waits is shorter."""
_log = logging.getLogger(__name__)


class Leadership:
    """Takes the Lease, renews it, and knows at every moment whether this process may still write."""

    def __init__(
        self,
        connection: Connection,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            connection: where the API server is; the requests have a pool of their own, so that no other waits for them.
            namespace: of the Lease.
            name: of the Lease; operators with different names act in parallel.
            identity: name and uid of the pod, so that a container that restarts in its pod keeps its Lease.
            clock: monotonic, in seconds.
        """
        self._api = ApiServerClient(connection)
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._held_until = -1.0
        self._held = threading.Event()
        self._stopped = threading.Event()
        self._is_lost = False
        self._thread: threading.Thread | None = None
        self._attempted_at = 0.0
        self._logged_error = ""
        self._observed: tuple[str, float] | None = None
        """Resource version of another holder's Lease, and since when it is unchanged."""
        self._written: Manifest | None = None
        """The Lease as this process wrote it last."""

    def start(self, on_lost: Callable[[], None], on_held: Callable[[], None] | None = None) -> None:
        """Start a thread that takes and renews the Lease.

        Args:
            on_lost: called at most once, when another process has taken the Lease. While the API server is unreachable
                the Lease is neither held nor lost: no other process can take it either, and this one holds it again
                when the server is back.
            on_held: called once, when the Lease was taken.
        """
        self._attempted_at = self._clock()
        self._thread = threading.Thread(target=self._run, args=(on_lost, on_held), name="lease", daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Whether this process may write now; never true in two processes at once."""
        return self._clock() < self._held_until

    @property
    def has_been_held(self) -> bool:
        """Whether this process has taken the Lease; it ends when another one takes it."""
        return self._held.is_set()

    @property
    def is_healthy(self) -> bool:
        """Whether the thread takes and renews the Lease, was not started yet, or was stopped."""
        if self._thread is None or self._stopped.is_set():
            return True
        return self._thread.is_alive() and self._clock() - self._attempted_at < HANG_SECONDS

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the Lease is held; return whether it is."""
        self._held.wait(timeout_seconds)
        return self.is_held()

    def stop(self) -> None:
        """Release the Lease, so that the next operator need not wait."""
        was_held = self.is_held()
        # In this order: the thread asks for `_stopped` before it extends `_held_until`.
        self._stopped.set()
        self._held_until = -1.0
        # Ends the pauses between attempts, so that the thread does not outlive the wait below.
        self._api.close()
        # `on_lost` and `on_held` are called by the thread itself and may end in `stop`: a thread cannot wait for
        # itself.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * REQUEST_SECONDS)
        # The thread may have taken the Lease after `was_held` was read.
        if was_held or self._written is not None:
            self._release()

    def _run(self, on_lost: Callable[[], None], on_held: Callable[[], None] | None) -> None:
        while not self._stopped.is_set():
            requested_at = self._attempted_at = self._clock()
            is_taken = self._take(requested_at)
            if self._stopped.is_set():
                return
            if is_taken:
                # Counted from before the request: others count from when they saw its effect, which is later.
                self._held_until = requested_at + WRITE_SECONDS
                if not self._held.is_set():
                    _log.info("holding the Lease %s/%s", self._namespace, self._name)
                    self._held.set()
                    if on_held is not None:
                        on_held()
            elif self._is_lost:
                _log.error("another process has taken the Lease %s/%s", self._namespace, self._name)
                on_lost()
                return
            failure_seconds = RETRY_SECONDS if self._held.is_set() else ASK_SECONDS
            self._stopped.wait(RENEW_SECONDS if is_taken else failure_seconds)

    def _take(self, now: float) -> bool:
        """Take or renew the Lease once; return whether this process holds it."""
        try:
            is_taken = self._request(now)
        except ApiError as error:
            if error.status not in (404, 409):  # another process was faster, or the Lease was deleted
                self._log_once(str(error))
            return False
        except Exception as error:
            # A Lease that nobody can read, for example. Whatever it is, the thread goes on: without it this process
            # would never write again, and nothing would say so.
            self._log_once(f"{type(error).__name__}: {error}")
            return False
        if is_taken:
            self._logged_error = ""
        return is_taken

    def _log_once(self, error: str) -> None:
        """Log an error unless it is the one of the attempt before."""
        if error != self._logged_error:
            self._logged_error = error
            _log.warning("the Lease %s/%s cannot be taken: %s", self._namespace, self._name, error)

    def _request(self, now: float) -> bool:
        path = KINDS["Lease"].path(self._namespace, self._name)
        # A renewal needs no read: the last written version is used, and a conflict reads the Lease next time.
        # Each request is sent once: `_run` repeats it, with a new `requested_at`.
        lease, self._written = self._written, None
        if lease is None:
            lease = self._api.get(path, attempts=1, timeout_seconds=REQUEST_SECONDS)
        if lease is None:
            collection = KINDS["Lease"].collection(self._namespace)
            self._written = self._api.post(
                collection, self._lease(None), attempts=1, timeout_seconds=REQUEST_SECONDS
            )
            return True
        if not self._is_free(lease, now):
            return False
        self._written = self._put(path, self._lease(lease))
        return True

    def _put(self, path: str, lease: JsonObject) -> Manifest:
        return self._api.put(path, lease, attempts=1, timeout_seconds=REQUEST_SECONDS)

    def _is_free(self, lease: Manifest, now: float) -> bool:
        """Whether the Lease is ours, released, or was unchanged for its whole duration while we observed it."""
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        if self._held.is_set():
            # Another process holds what this one held: no write may start from now on.
            self._is_lost, self._held_until = True, -1.0
            return False
        version = str(lease["metadata"].get("resourceVersion"))
        if self._observed is None or self._observed[0] != version:
            self._observed = (version, now)
        # The holder may run another version, whose duration is the one that it relies on.
        return now - self._observed[1] > max(DURATION_SECONDS, int(spec.get("leaseDurationSeconds") or 0))

    def _lease(self, old: Manifest | None, *, is_released: bool = False) -> JsonObject:
        spec = dict((old or {}).get("spec") or {})
        now = micro_time()
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            # Kubernetes counts changes of the holder here, and the first of all is none.
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (old is not None)
        spec |= {
            "holderIdentity": "" if is_released else self._identity,
            "leaseDurationSeconds": 1 if is_released else DURATION_SECONDS,
            "renewTime": now,
        }
        metadata: JsonObject = {"name": self._name, "namespace": self._namespace}
        if old is not None:
            # With its resource version: the API server refuses the write if another process wrote in between.
            metadata = dict(old["metadata"])
            metadata.pop("managedFields", None)
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }

    def _release(self) -> None:
        path = KINDS["Lease"].path(self._namespace, self._name)
        try:
            # Read once more: another process may have taken the Lease meanwhile, and its Lease must stay.
            lease = self._api.get(path, attempts=1, timeout_seconds=REQUEST_SECONDS)
            if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                self._put(path, self._lease(lease, is_released=True))
        except ApiError as error:
            _log.warning("the Lease %s/%s is not released: %s", self._namespace, self._name, error)
