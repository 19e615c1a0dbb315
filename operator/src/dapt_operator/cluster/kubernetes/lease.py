"""One operator acts at a time: a Lease of coordination.k8s.io/v1.

Why it is safe: a holder that has not renewed for `WRITE_SECONDS` starts no write any more, and gives up one it has
started after `api.ATTEMPT_SECONDS`; together they are the Lease's duration, and nobody takes it before it stood
unchanged for that long under his own eyes. Only intervals on monotonic clocks are compared, never two machines' times
of day. (The client library's leader election compares times of day, which jump, and has no Lease to lock.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import kubernetes.client

from dapt_operator.cluster.kubernetes.client import ATTEMPT_SECONDS, Api
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.stage_run import Manifest

WRITE_SECONDS = 10.0
"""How long after its last renewal a holder may begin a write."""
DURATION_SECONDS = int(WRITE_SECONDS + ATTEMPT_SECONDS)
RENEW_SECONDS = 2.5
ASK_SECONDS = 1.0
"""Between two attempts to take it."""
_REQUEST_SECONDS = 3.0
_log = logging.getLogger(__name__)


class Leadership:
    """Takes the Lease, keeps it, and knows at every moment whether it may still act on it."""

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
            name: of the Lease; two operators with different names act side by side.
            identity: the pod's name and uid: a container that starts again in its pod goes on with its Lease.
            clock: monotonic, in seconds.
        """
        self._api = Api(api)
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._held_until = -1.0
        self._held = threading.Event()
        self._over = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None
        self._seen: tuple[str, float] | None = None
        """Resource version of another's Lease, and since when it stands unchanged."""
        self._written: Manifest | None = None
        """The Lease as we wrote it last."""

    def start(self, on_lost: Callable[[], None], on_held: Callable[[], None] | None = None) -> None:
        """Begin to ask for the Lease, in a thread.

        Args:
            on_lost: called at most once, when somebody else has taken it. While the API server is away it is not held
                and not lost: nobody else can take it either, and it is held again when the server is back.
            on_held: called once, when it was got.
        """
        self._thread = threading.Thread(target=self._run, args=(on_lost, on_held), name="lease", daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Whether we may write now; never true in two processes at once."""
        return self._clock() < self._held_until

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it is held; returns whether it is."""
        self._held.wait(timeout_seconds)
        return self.is_held()

    def stop(self) -> None:
        """Give the Lease back, so that the next operator need not wait."""
        was_held = self.is_held()
        self._over.set()
        self._held_until = -1.0
        self._api.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * _REQUEST_SECONDS)
        if was_held or self._written is not None:  # also what was got while it ended
            self._give_back()

    def _run(self, on_lost: Callable[[], None], on_held: Callable[[], None] | None) -> None:
        while not self._over.is_set():
            asked_at = self._clock()
            taken = self._take(asked_at)
            if self._over.is_set():
                return
            if taken:
                self._held_until = asked_at + WRITE_SECONDS
                if not self._held.is_set():
                    _log.info("the Lease %s/%s is ours", self._namespace, self._name)
                    self._held.set()
                    if on_held is not None:
                        on_held()
            elif self._lost:
                _log.error("the Lease %s/%s was taken by another", self._namespace, self._name)
                on_lost()
                return
            self._over.wait(RENEW_SECONDS if taken else ASK_SECONDS)

    def _take(self, now: float) -> bool:
        """Take or renew it once; returns whether it is ours."""
        path = KINDS["Lease"].path(self._namespace, self._name)
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
            if error.status not in (404, 409):  # somebody was faster, or deleted it
                _log.warning("the Lease %s/%s: %s", self._namespace, self._name, error)
            return False

    def _is_free(self, lease: Manifest, now: float) -> bool:
        """Ours, given back, or unchanged for its whole duration while we looked."""
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        if self._held.is_set():
            self._lost, self._held_until = True, -1.0  # not a moment longer
            return False
        version = str(lease["metadata"].get("resourceVersion"))
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1] > max(DURATION_SECONDS, int(spec.get("leaseDurationSeconds") or 0))

    def _lease(self, old: Manifest | None, *, free: bool = False) -> dict[str, Any]:
        spec = dict((old or {}).get("spec") or {})
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = stamp
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (old is not None)
        spec |= {
            "holderIdentity": "" if free else self._identity,
            "leaseDurationSeconds": 1 if free else DURATION_SECONDS,
            "renewTime": stamp,
        }
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        if old is not None:
            metadata = dict(old["metadata"])
            metadata.pop("managedFields", None)
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": spec,
        }

    def _give_back(self) -> None:
        path = KINDS["Lease"].path(self._namespace, self._name)
        try:
            lease = self._api.get(path, attempts=1, timeout_seconds=_REQUEST_SECONDS)
            if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                self._api.put(path, self._lease(lease, free=True), attempts=1)
        except ApiError as error:
            _log.warning("the Lease %s/%s is not given back: %s", self._namespace, self._name, error)
