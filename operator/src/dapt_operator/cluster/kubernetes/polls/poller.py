"""Polls the API server at a limited rate for facts about runs that no watch reports."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.port import Key
from dapt_operator.stage_run import Manifest

TIMEOUT_SECONDS: Final = 3.0
_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass
class _RunPolls(Generic[Answer]):
    """Times and last answer of the polls of one run, in seconds of the poller's clock."""

    first_at: float
    next_at: float
    answers: tuple[Answer, ...] = ()
    """The last answer; empty before the first. A tuple, because an answer may be None."""


class Poller(ABC, Generic[Answer]):
    """Keeps the last answer for each run until the next one; a poll that fails changes nothing."""

    first_poll_seconds = 0.0
    """Age at which a run is first polled, counted from the first call that names it."""
    interval_seconds: float

    def __init__(self, api: ApiServerClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._lock = threading.Lock()
        self._polls: dict[Key, dict[str, _RunPolls[Answer]]] = {}
        """By adaptation, then by uid of the run's object; holds only the runs that the last call named."""

    @abstractmethod
    def _poll(self, run: Manifest) -> Answer:
        """Send one request about a run. Raises ApiError when it could not be answered."""

    def _interval_seconds(self, age_seconds: float) -> float:  # noqa: ARG002
        """Return the pause until the next poll of a run that has been polled for `age_seconds`."""
        return self.interval_seconds

    def answers(self, key: Key, runs: Iterable[Manifest]) -> dict[str, Answer]:
        """Poll the runs that are due; return the last answers by name of the run, without unanswered runs.

        Args:
            key: adaptation of the runs.
            runs: Jobs and JobSets.
        """
        now = self._clock()
        # Taken out under the lock and put back at the end: no request is sent while the lock is held.
        with self._lock:
            old_polls = self._polls.pop(key, {})
        polls: dict[str, _RunPolls[Answer]] = {}
        answers: dict[str, Answer] = {}
        for run in runs:
            uid = str(run["metadata"]["uid"])
            # By uid: a run that was created again under its name has its first poll before it. Runs that are not named
            # any more are dropped here.
            run_polls = old_polls.get(uid) or _RunPolls(now, now + self.first_poll_seconds)
            polls[uid] = run_polls
            if now >= run_polls.next_at:
                # Before the request, so that one that fails is not repeated before the next interval either.
                run_polls.next_at = now + self._interval_seconds(now - run_polls.first_at)
                try:
                    run_polls.answers = (self._poll(run),)
                except ApiError as error:
                    _log.debug("%s; the last answer still counts", error)
                except Exception:
                    # An answer that is not what Kubernetes documents. A poll only adds to what is known, so it must
                    # not keep an adaptation from being reconciled.
                    _log.warning("an answer about %s cannot be read", run["metadata"]["name"], exc_info=True)
            answers |= {str(run["metadata"]["name"]): answer for answer in run_polls.answers}
        if polls:
            with self._lock:
                self._polls[key] = polls
        return answers

    def forget(self, key: Key) -> None:
        """Drop all answers about an adaptation that was deleted."""
        with self._lock:
            self._polls.pop(key, None)
