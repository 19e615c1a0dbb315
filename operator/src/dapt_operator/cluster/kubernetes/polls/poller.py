"""Looks at what no watch tells: questions to the API server about runs, asked now and then."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dapt_operator.cluster.kubernetes.client import Api
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.port import Key
from dapt_operator.stage_run import Manifest

TIMEOUT_SECONDS = 3.0
_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass
class _Look(Generic[Answer]):
    first_at: float
    next_at: float
    answers: tuple[Answer, ...] = ()
    """The last one, once there is one."""


class Poller(ABC, Generic[Answer]):
    """What was answered last counts until the next answer; a question that fails changes nothing."""

    first_look_seconds = 0.0
    """From when a run is first asked about."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._lock = threading.Lock()
        self._looks: dict[Key, dict[str, _Look[Answer]]] = {}
        """By adaptation, then by uid of the run's object: only what the last call named is kept."""

    @abstractmethod
    def _ask(self, run: Manifest) -> Answer:
        """One question. Raises ApiError when it could not be answered."""

    @abstractmethod
    def _rest_seconds(self, asked_for_seconds: float) -> float:
        """Between two questions about a run that has been asked about for so long."""

    def of(self, key: Key, runs: Iterable[Manifest]) -> dict[str, Answer]:
        """Answers by name of the run, for those that were answered.

        Args:
            key: whose runs.
            runs: Jobs and JobSets.
        """
        now = self._clock()
        with self._lock:
            before = self._looks.pop(key, {})
        looks: dict[str, _Look[Answer]] = {}
        found: dict[str, Answer] = {}
        for run in runs:
            uid = str(run["metadata"]["uid"])
            look = looks[uid] = before.get(uid) or _Look(now, now + self.first_look_seconds)
            if now >= look.next_at:
                look.next_at = now + self._rest_seconds(now - look.first_at)
                try:
                    look.answers = (self._ask(run),)
                except ApiError as error:
                    _log.debug("%s; what was seen before still counts", error)
            found |= {str(run["metadata"]["name"]): answer for answer in look.answers}
        if looks:
            with self._lock:
                self._looks[key] = looks
        return found

    def forget(self, key: Key) -> None:
        """The adaptation is gone."""
        with self._lock:
            self._looks.pop(key, None)
