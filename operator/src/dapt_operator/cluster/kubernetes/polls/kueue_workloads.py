"""Polls Kueue's Workload of each queued run, which says why the run waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from dapt_operator.cluster.kubernetes.client import ApiServerClient, Query
from dapt_operator.cluster.kubernetes.errors import RequestRefusedError
from dapt_operator.cluster.kubernetes.polls.poller import TIMEOUT_SECONDS, Poller
from dapt_operator.cluster.kubernetes.resources import ResourceKind
from dapt_operator.stage_run import JsonObject, Manifest

JOB_UID_LABEL: Final = "kueue.x-k8s.io/job-uid"
MAY_NOT_READ: Final = (
    "its queue decides, and the operator may not read Kueue's Workloads to say what it waits for: set"
    " features.kueue=true in the operator's chart, or remove spec.queue"
)
_LONG_WAIT_SECONDS: Final = 60.0
_LONG_WAIT_INTERVAL_SECONDS: Final = 30.0
"""Interval for a run that has waited longer than `_LONG_WAIT_SECONDS`. Its admission is not delayed by it: the watch of
Jobs reports that."""
_DISCOVERY_INTERVAL_SECONDS: Final = 60.0
_GROUP_PATH: Final = "/apis/kueue.x-k8s.io"


class Workloads(Poller["Manifest | None"]):
    """Polls the Workload of each run that is suspended and queued; None: there is none yet, or no Kueue.

    Where the operator lacks the right to read Workloads (`features.kueue` of the chart), the answer says so in a
    Workload's place.
    """

    interval_seconds = 5.0

    def __init__(self, api: ApiServerClient, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(api, clock)
        self._kind: ResourceKind | None = None
        self._next_discovery = 0.0

    def _poll(self, run: Manifest) -> Manifest | None:
        kind = self._discovered_kind(self._clock())
        if kind is None:
            return None
        # By the label with the run's uid: Kueue chooses the names of its Workloads.
        query: Query = {"labelSelector": f"{JOB_UID_LABEL}={run['metadata']['uid']}", "limit": 2}
        path = kind.collection(str(run["metadata"]["namespace"]))
        try:
            answer = self._api.get(path, query, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        except RequestRefusedError as error:
            if error.status != 403:
                raise
            # Without the right the run would wait, perhaps for ever, and nothing would say for what.
            return _unreadable()
        items = (answer or {}).get("items") or []
        return _reduced(items[0]) if items else None

    def _interval_seconds(self, age_seconds: float) -> float:
        return _LONG_WAIT_INTERVAL_SECONDS if age_seconds > _LONG_WAIT_SECONDS else self.interval_seconds

    def _discovered_kind(self, now: float) -> ResourceKind | None:
        """Return the kind Workload in the version that the server prefers; None without Kueue."""
        with self._lock:
            if self._kind is not None or now < self._next_discovery:
                return self._kind
            # Set before the request, which is sent without the lock: no other thread asks meanwhile, and none waits.
            self._next_discovery = now + _DISCOVERY_INTERVAL_SECONDS
        group = self._api.get(_GROUP_PATH, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        version = ((group or {}).get("preferredVersion") or {}).get("groupVersion")
        kind = ResourceKind(str(version), "workloads") if version else None
        with self._lock:
            self._kind = kind
        return kind


def _unreadable() -> JsonObject:
    """Return what stands for a Workload that the operator may not read."""
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Forbidden", "message": MAY_NOT_READ}
    return {"kind": "Workload", "metadata": {}, "spec": {}, "status": {"conditions": [condition]}}


def _reduced(workload: Manifest) -> JsonObject:
    """Return a Workload without its copies of the pods' templates."""
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
