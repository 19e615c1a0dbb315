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

import kubernetes.client

from dapt_operator.cluster.kubernetes.client import ATTEMPT_SECONDS, ApiServerClient
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
_REQUEST_SECONDS: Final = 3.0
_log = logging.getLogger(__name__)


class Leadership:
    """Takes the Lease, renews it, and knows at every moment whether this process may still write."""

    def __init__(
        self,
        api: kubernetes.client.ApiClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            api: configured client.
            namespace: of the Lease.
            name: of the Lease; operators with different names act in parallel.
            identity: name and uid of the pod, so that a container that restarts in its pod keeps its Lease.
            clock: monotonic, in seconds.
        """
        self._api = ApiServerClient(api)
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._held_until = -1.0
        self._held = threading.Event()
        self._stopped = threading.Event()
        self._is_lost = False
        self._thread: threading.Thread | None = None
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
        self._thread = threading.Thread(target=self._run, args=(on_lost, on_held), name="lease", daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Whether this process may write now; never true in two processes at once."""
        return self._clock() < self._held_until

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
            self._thread.join(timeout=2 * _REQUEST_SECONDS)
        # The thread may have taken the Lease after `was_held` was read.
        if was_held or self._written is not None:
            self._release()

    def _run(self, on_lost: Callable[[], None], on_held: Callable[[], None] | None) -> None:
        while not self._stopped.is_set():
            requested_at = self._clock()
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
            self._stopped.wait(RENEW_SECONDS if is_taken else ASK_SECONDS)

    def _take(self, now: float) -> bool:
        """Take or renew the Lease once; return whether this process holds it."""
        path = KINDS["Lease"].path(self._namespace, self._name)
        # A renewal needs no read: the last written version is used, and a conflict reads the Lease next time.
        # Each request is sent once: `_run` repeats it, with a new `requested_at`.
        lease, self._written = self._written, None
        try:
            if lease is None:
                lease = self._api.get(path, attempts=1, timeout_seconds=_REQUEST_SECONDS)
            if lease is None:
                collection = KINDS["Lease"].collection(self._namespace)
                self._written = self._api.post(collection, self._lease(None), attempts=1)
                return True
            if not self._is_free(lease, now):
                return False
            self._written = self._api.put(path, self._lease(lease), attempts=1)
            return True
        except ApiError as error:
            if error.status not in (404, 409):  # another process was faster, or the Lease was deleted
                _log.warning("the Lease %s/%s cannot be taken: %s", self._namespace, self._name, error)
            return False

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
            lease = self._api.get(path, attempts=1, timeout_seconds=_REQUEST_SECONDS)
            if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                self._api.put(path, self._lease(lease, is_released=True), attempts=1)
        except ApiError as error:
            _log.warning("the Lease %s/%s is not released: %s", self._namespace, self._name, error)
