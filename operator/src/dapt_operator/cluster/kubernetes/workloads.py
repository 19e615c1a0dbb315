"""Why a queued run waits: Kueue's Workload of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dapt_operator.api.run import Manifest
from dapt_operator.cluster.kubernetes.api import Api
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.paths import Kind
from dapt_operator.cluster.port import Key

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
LOOK_AGAIN_SECONDS = 5.0
PATIENT_SECONDS = 30.0
"""Between two looks at a run that has waited for more than a minute: its admission is seen on the Job itself."""
_PATIENT_AFTER_SECONDS = 60.0
_DISCOVER_AGAIN_SECONDS = 60.0
_GROUP_PATH = "/apis/kueue.x-k8s.io"
_TIMEOUT_SECONDS = 3.0
_log = logging.getLogger(__name__)


@dataclass
class _Look:
    first_at: float
    next_at: float
    workload: Manifest | None = None


class Workloads:
    """Looks at the Workloads of suspended runs now and then; tells what was seen last."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: dict[Key, dict[str, _Look]] = {}
        self._kind: Kind | None = None
        self._discover_at = 0.0

    def of(self, key: Key, runs: Iterable[Manifest]) -> dict[str, Manifest]:
        """Workloads by name of the run.

        Args:
            key: whose runs.
            runs: its Jobs and JobSets that are suspended and queued.
        """
        now = self._clock()
        with self._lock:
            before = self._looks.pop(key, {})
        looks: dict[str, _Look] = {}
        found: dict[str, Manifest] = {}
        for run in runs:
            uid, name = str(run["metadata"]["uid"]), str(run["metadata"]["name"])
            look = looks[uid] = before.get(uid) or _Look(now, now)
            if now >= look.next_at:
                patient = now - look.first_at > _PATIENT_AFTER_SECONDS
                look.next_at = now + (PATIENT_SECONDS if patient else LOOK_AGAIN_SECONDS)
                self._look(str(run["metadata"]["namespace"]), uid, look, now)
            if look.workload is not None:
                found[name] = look.workload
        if looks:
            with self._lock:
                self._looks[key] = looks
        return found

    def forget(self, key: Key) -> None:
        """The adaptation is gone."""
        with self._lock:
            self._looks.pop(key, None)

    def _look(self, namespace: str, uid: str, look: _Look, now: float) -> None:
        try:
            kind = self._served(now)
            if kind is None:
                look.workload = None
                return
            query = {"labelSelector": f"{JOB_UID_LABEL}={uid}", "limit": 2}
            answer = self._api.get(
                kind.collection(namespace), query, attempts=1, timeout_seconds=_TIMEOUT_SECONDS
            )
        except ApiError as error:
            _log.debug("%s; what was seen before still counts", error)
            return
        items = (answer or {}).get("items") or []
        look.workload = _kept(items[0]) if items else None

    def _served(self, now: float) -> Kind | None:
        """Workloads in the version that the server prefers; None without Kueue."""
        with self._lock:
            if self._kind is not None or now < self._discover_at:
                return self._kind
            self._discover_at = now + _DISCOVER_AGAIN_SECONDS
        group = self._api.get(_GROUP_PATH, attempts=1, timeout_seconds=_TIMEOUT_SECONDS)
        version = ((group or {}).get("preferredVersion") or {}).get("groupVersion")
        kind = Kind(str(version), "workloads") if version else None
        with self._lock:
            self._kind = kind
        return kind


def _kept(workload: Manifest) -> dict[str, Any]:
    """Without the copies of the pods' templates."""
    metadata, spec = workload.get("metadata") or {}, workload.get("spec") or {}
    return {
        "kind": "Workload",
        "metadata": {name: metadata[name] for name in ("name", "namespace", "uid") if name in metadata},
        "spec": {name: spec[name] for name in ("queueName", "active", "priority") if name in spec},
        "status": {
            name: value
            for name, value in (workload.get("status") or {}).items()
            if name in ("conditions", "requeueState")
        },
    }
