"""Decides which adaptation is reconciled when, and by which thread.

`DueTimes` is plain bookkeeping with the clock as an argument, so that its promises can be tested for any order of
events; `WorkQueue` adds a lock and threads. The promises, where a reconcile is one call of `work(key)`:

1. Two reconciles of one key never run at the same time.
2. A wake is never lost: a reconcile of that key starts after it (the next one, if one is running).
3. Wakes that come together cause one reconcile, and two reconciles of a key keep a small distance, so that a burst of
   events (a Job and its pods) costs one reconcile.
4. A key that failed waits longer with each failure in a row, whatever wakes it.
5. Of the keys that are due, an urgent one is reconciled before others that became due up to a minute earlier, and none
   waits for ever behind urgent ones.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Final, Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
_log = logging.getLogger(__name__)

SPACING_SECONDS: Final = 0.05
"""Time from the end of a key's reconcile to the start of its next: shorter than a user or a progress bar notices,
longer than the spread of the events that one write of ours causes."""
FIRST_BACKOFF_SECONDS: Final = 0.2
LONGEST_BACKOFF_SECONDS: Final = 30.0
"""A failure is an API call that was refused after its own retries: soon again, then after twice the time."""


class Urgency(Enum):
    """How a wake stands to others that are due at the same time; the value is its head start in seconds."""

    ROUTINE = 0.0
    """A live reading, or a periodic visit: nothing waits for it."""
    CHANGE = 10.0
    """A watched object changed, or the time of a decision has come."""
    FAILURE = 60.0
    """A pod failed: accelerators are idle until its gang runs again."""


def backoff_seconds(failures: int) -> float:
    """Return the seconds that a key waits after a number of failures in a row, at least 1."""
    # The exponent has a bound, since 2.0 ** 1024 is an OverflowError.
    return min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 30))


class _Wake(NamedTuple):
    """When a key is due, and how urgent it is then."""

    due: float
    urgency: Urgency

    @property
    def rank(self) -> float:
        """Place among the keys that are due: the time of the wake, brought forward by its head start."""
        return self.due - self.urgency.value


class DueTimes(Generic[K]):
    """Records when each key is due. Not thread-safe; times are seconds of any monotonic clock."""

    def __init__(self, spacing_seconds: float = SPACING_SECONDS) -> None:
        self._spacing = spacing_seconds
        self._wakes: dict[K, _Wake] = {}
        self._waiting: list[tuple[float, int, K, _Wake]] = []
        """Heap by time of the keys whose time has not come when they were last looked at."""
        self._ready: list[tuple[float, int, K, _Wake]] = []
        """Heap by rank of the keys whose time has come."""
        self._order = itertools.count()
        """Entries of both heaps may be out of date: the wake in `_wakes` is the truth (see `_drop_stale`)."""
        self._running: set[K] = set()
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        """Earliest start of a key that was reconciled a moment ago or has failed: promises 3 and 4."""
        self._expiries: deque[tuple[float, K]] = deque()
        """When entries of `_not_before` expire, so that keys of deleted adaptations leave nothing behind."""

    def __len__(self) -> int:
        """Number of keys that wait for their time or for a thread."""
        return len(self._wakes)

    @property
    def running(self) -> frozenset[K]:
        """Keys that are being reconciled."""
        return frozenset(self._running)

    def wake(self, key: K, now: float, after_seconds: float = 0.0, urgency: Urgency = Urgency.CHANGE) -> None:
        """Make `key` due in `after_seconds` at the latest, but not before its wait is over."""
        due = max(now + after_seconds, self._not_before.get(key, now))
        old = self._wakes.get(key)
        new = _Wake(due, urgency)
        if old is not None:
            # An earlier time and a higher urgency win: a wake may bring a reconcile forward, never delay it (promise
            # 2).
            new = _Wake(min(due, old.due), max(urgency, old.urgency, key=lambda item: item.value))
        if new != old:
            self._put(key, new)

    def take(self, now: float) -> K | None:
        """Return the most urgent of the keys that are due, or None; it counts as running until `done` or `failed`."""
        self._drop_stale(self._waiting)
        while self._waiting and self._waiting[0][0] <= now:
            _, number, key, wake = heapq.heappop(self._waiting)
            heapq.heappush(self._ready, (wake.rank, number, key, wake))
            self._drop_stale(self._waiting)
        self._drop_stale(self._ready)
        if not self._ready:
            return None
        key = heapq.heappop(self._ready)[2]
        del self._wakes[key]
        self._running.add(key)
        return key

    def next_due(self) -> float | None:
        """Return when `take` will return a key, unless a wake comes before; None when no key waits."""
        self._drop_stale(self._ready)
        self._drop_stale(self._waiting)
        return min((heap[0][3].due for heap in (self._ready, self._waiting) if heap), default=None)

    def done(self, key: K, now: float, requeue_seconds: float | None = None) -> None:
        """Record a success. The key is due again after `requeue_seconds`, or if it was woken while it was running."""
        self._running.discard(key)
        self._failures.pop(key, None)
        # Before the wake below, which may be due at once and is moved behind the spacing.
        self._wait_until(key, now, now + self._spacing)
        if requeue_seconds is not None:
            self.wake(key, now, requeue_seconds)
        # A wake during the reconcile is in `_wakes`, but not in a heap: now it gets there (promise 2).
        if key in self._wakes:
            wake = self._wakes[key]
            self._put(key, _Wake(max(wake.due, now + self._spacing), wake.urgency))

    def failed(self, key: K, now: float) -> float:
        """Record a failure; return the seconds until the key is due again."""
        self._running.discard(key)
        self._failures[key] = self._failures.get(key, 0) + 1
        delay_seconds = backoff_seconds(self._failures[key])
        self._wait_until(key, now, now + delay_seconds)
        # In place of an earlier wake during the reconcile: a key that failed waits, whatever wakes it (promise 4).
        wake = self._wakes.get(key, _Wake(now, Urgency.CHANGE))
        self._put(key, _Wake(now + delay_seconds, wake.urgency))
        return delay_seconds

    def _put(self, key: K, wake: _Wake) -> None:
        self._wakes[key] = wake
        # A running key stays out of the heaps, so that `take` cannot return it (promise 1).
        if key not in self._running:
            heapq.heappush(self._waiting, (wake.due, next(self._order), key, wake))

    def _drop_stale(self, heap: list[tuple[float, int, K, _Wake]]) -> None:
        """Remove entries from the top of a heap that another wake replaced, or whose key is running."""
        while heap:
            _, _, key, wake = heap[0]
            if key not in self._running and self._wakes.get(key) == wake:
                return
            heapq.heappop(heap)

    def _wait_until(self, key: K, now: float, time: float) -> None:
        self._not_before[key] = time
        self._expiries.append((time, key))
        # Not in order of time, since a key that failed waits longer: what stands behind it goes later. Only memory
        # depends on it, because `wake` takes the later of both times.
        while self._expiries and self._expiries[0][0] <= now:
            expiry, old_key = self._expiries.popleft()
            if self._not_before.get(old_key) == expiry:
                del self._not_before[old_key]


class WorkQueue(Generic[K]):
    """Calls `work(key)` in its own threads; `work` returns after how many seconds it is to be called again, or None."""

    def __init__(
        self,
        work: Callable[[K], float | None],
        *,
        workers: int = 8,
        on_error: Callable[[K, Exception, float], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        spacing_seconds: float = SPACING_SECONDS,
    ) -> None:
        """
        Args:
            work: reconciles one key.
            workers: number of threads.
            on_error: called with an exception of `work` and the seconds until the next attempt.
            clock: monotonic, in seconds.
            spacing_seconds: see `SPACING_SECONDS`.
        """
        self._work = work
        self._on_error = on_error
        self._clock = clock
        self._due_times: DueTimes[K] = DueTimes(spacing_seconds)
        self._changed = threading.Condition()
        self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._loop, name=f"reconcile-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> None:
        """Start the threads. Earlier wakes are kept."""
        for thread in self._threads:
            thread.start()

    def wake(self, key: K, after_seconds: float = 0.0, urgency: Urgency = Urgency.CHANGE) -> None:
        """Make `key` due in `after_seconds` at the latest. May be called from any thread at any time; never blocks."""
        with self._changed:
            self._due_times.wake(key, self._clock(), after_seconds, urgency)
            self._changed.notify()  # a waiting thread may sleep until a later time than this key's

    def stop(self, timeout_seconds: float) -> bool:
        """Start no further reconcile and wait for the running ones; return whether all ended in time."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        end = self._clock() + timeout_seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def is_healthy(self) -> bool:
        """Whether every thread that was started is alive."""
        return all(thread.is_alive() for thread in self._threads if thread.ident is not None)

    @property
    def depth(self) -> int:
        """Number of keys that wait for their time or for a thread."""
        with self._changed:
            return len(self._due_times)

    def _loop(self) -> None:
        while (key := self._next()) is not None:
            try:
                requeue_seconds = self._work(key)
            except Exception as error:
                with self._changed:
                    delay_seconds = self._due_times.failed(key, self._clock())
                    self._changed.notify()
                # Without the lock: it writes a line of the log, and no other thread is to wait for that.
                try:
                    self._on_error(key, error, delay_seconds)
                except Exception:
                    # The thread goes on: a report that fails must not stop the reconciles.
                    _log.exception("an error of a reconcile could not be reported")
            else:
                with self._changed:
                    self._due_times.done(key, self._clock(), requeue_seconds)
                    self._changed.notify()

    def _next(self) -> K | None:
        with self._changed:
            while not self._is_stopping:
                now = self._clock()
                key = self._due_times.take(now)
                if key is not None:
                    return key
                due = self._due_times.next_due()
                # A wake of an earlier time notifies; otherwise the time itself ends the wait.
                self._changed.wait(None if due is None else max(0.0, due - now))
            return None
