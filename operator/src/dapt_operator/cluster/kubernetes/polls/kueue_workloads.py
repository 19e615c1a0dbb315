"""Why a queued run waits: Kueue's Workload of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dapt_operator.cluster.kubernetes.client import Api
from dapt_operator.cluster.kubernetes.polls.poller import TIMEOUT_SECONDS, Poller
from dapt_operator.cluster.kubernetes.resources import ResourceKind
from dapt_operator.stage_run import Manifest

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
LOOK_AGAIN_SECONDS = 5.0
PATIENT_SECONDS = 30.0
"""Between two looks at a run that has waited for more than a minute: its admission is seen on the Job itself."""
_PATIENT_AFTER_SECONDS = 60.0
_DISCOVER_AGAIN_SECONDS = 60.0
_GROUP_PATH = "/apis/kueue.x-k8s.io"


class Workloads(Poller["Manifest | None"]):
    """The Workload of each run that is suspended and queued; None: there is none yet, or no Kueue."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(api, clock)
        self._kind: ResourceKind | None = None
        self._discover_at = 0.0

    def _ask(self, run: Manifest) -> Manifest | None:
        kind = self._served(self._clock())
        if kind is None:
            return None
        query = {"labelSelector": f"{JOB_UID_LABEL}={run['metadata']['uid']}", "limit": 2}
        path = kind.collection(str(run["metadata"]["namespace"]))
        answer = self._api.get(path, query, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        items = (answer or {}).get("items") or []
        return _kept(items[0]) if items else None

    def _rest_seconds(self, asked_for_seconds: float) -> float:
        return PATIENT_SECONDS if asked_for_seconds > _PATIENT_AFTER_SECONDS else LOOK_AGAIN_SECONDS

    def _served(self, now: float) -> ResourceKind | None:
        """Workloads in the version that the server prefers; None without Kueue."""
        with self._lock:
            if self._kind is not None or now < self._discover_at:
                return self._kind
            self._discover_at = now + _DISCOVER_AGAIN_SECONDS
        group = self._api.get(_GROUP_PATH, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        version = ((group or {}).get("preferredVersion") or {}).get("groupVersion")
        kind = ResourceKind(str(version), "workloads") if version else None
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
