"""Whether the stage.json that a live run reads is still the one that was written."""

from __future__ import annotations

import hashlib
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
from dapt_operator.launchers.objects import STAGE_FILE_KEY

FIRST_LOOK_SECONDS = 10.0
"""After a pod is there. A run that is over sooner is not looked at: its pods compare the digest themselves."""
LOOK_AGAIN_SECONDS = 45.0
_TIMEOUT_SECONDS = 3.0
_log = logging.getLogger(__name__)


@dataclass
class _Look:
    next_at: float
    digest: str | None = None
    seen: bool = False


class StageDigests:
    """Looks at each live run's ConfigMap now and then; tells what was seen last."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: dict[Key, dict[str, _Look]] = {}
        """By adaptation, then by name of the run: only what the last call named is kept."""

    def of(self, key: Key, runs: Iterable[Manifest]) -> dict[str, str | None]:
        """SHA-256 of stage.json by name of the run, for those that were looked at.

        Args:
            key: whose runs.
            runs: its Jobs and JobSets that are live and have pods.
        """
        now = self._clock()
        found: dict[str, str | None] = {}
        with self._lock:
            before = self._looks.pop(key, {})
        looks: dict[str, _Look] = {}
        for run in runs:
            name = str(run["metadata"]["name"])
            look = looks[name] = before.get(name) or _Look(now + FIRST_LOOK_SECONDS)
            if now >= look.next_at:
                look.next_at = now + LOOK_AGAIN_SECONDS
                self._look(str(run["metadata"]["namespace"]), name, look)
            if look.seen:
                found[name] = look.digest
        if looks:
            with self._lock:
                self._looks[key] = looks
        return found

    def forget(self, key: Key) -> None:
        """The adaptation is gone."""
        with self._lock:
            self._looks.pop(key, None)

    def _look(self, namespace: str, name: str, look: _Look) -> None:
        path = KINDS["ConfigMap"].path(namespace, name)
        try:
            config = self._api.get(path, attempts=1, timeout_seconds=_TIMEOUT_SECONDS)
        except ApiError as error:
            _log.debug("%s; what was seen before still counts", error)
            return
        look.seen = True
        look.digest = None
        if config is not None:
            text = str((config.get("data") or {}).get(STAGE_FILE_KEY, ""))
            look.digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
