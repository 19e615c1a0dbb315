"""Why a Job has no pods: what the API server answered the Job controller, which tells it in an Event alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dapt_operator.api.run import Manifest
from dapt_operator.cluster.kubernetes.api import Api
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.paths import KINDS
from dapt_operator.cluster.port import Key
from dapt_operator.launchers.jobset import job_name

FIRST_LOOK_SECONDS = 3.0
"""What the Job controller gets to make pods, from when the run was first seen without."""
LOOK_AGAIN_SECONDS = 10.0
_MOST_EVENTS = 20
_TIMEOUT_SECONDS = 3.0
_log = logging.getLogger(__name__)


@dataclass
class _Look:
    next_at: float
    said: str = ""


class PodRefusals:
    """Looks at the Events of runs without pods now and then; tells what was said last."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: dict[Key, dict[str, _Look]] = {}

    def of(self, key: Key, runs: Iterable[Manifest]) -> dict[str, str]:
        """Sentences by name of the run.

        Args:
            key: whose runs.
            runs: its Jobs and JobSets that ought to have pods and have none.
        """
        now = self._clock()
        with self._lock:
            before = self._looks.pop(key, {})
        looks: dict[str, _Look] = {}
        for run in runs:
            name = str(run["metadata"]["name"])
            look = looks[name] = before.get(name) or _Look(now + FIRST_LOOK_SECONDS)
            if now >= look.next_at:
                look.next_at = now + LOOK_AGAIN_SECONDS
                self._look(key.namespace, job_name(name) if run["kind"] == "JobSet" else name, look)
        if looks:
            with self._lock:
                self._looks[key] = looks
        return {name: look.said for name, look in looks.items() if look.said}

    def _look(self, namespace: str, job: str, look: _Look) -> None:
        chosen = f"involvedObject.kind=Job,involvedObject.name={job},reason=FailedCreate"
        query = {"fieldSelector": chosen, "limit": _MOST_EVENTS}
        try:
            answer = self._api.get(
                KINDS["Event"].collection(namespace), query, attempts=1, timeout_seconds=_TIMEOUT_SECONDS
            )
        except ApiError as error:
            _log.debug("%s; what was said before still counts", error)
            return
        found = (answer or {}).get("items") or []
        if found:
            newest = max(
                found, key=lambda item: str(item.get("lastTimestamp") or item.get("eventTime") or "")
            )
            look.said = str(newest.get("message") or "")
