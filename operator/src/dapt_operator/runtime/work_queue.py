"""The work queue: which adaptation is looked at when, and by which thread.

Two parts. `Schedule` is plain bookkeeping with the clock as an argument, so that its promises can be tested for any
order of events; `WorkQueue` gives it a lock and threads. The promises:

1. Never two runs of one key at once.
2. A wake is never lost: after it, a run of that key begins (while a run goes on, the next one).
3. Wakes that come together are one run, and two runs of a key are a little apart, so that a burst of events
   (a Job and its pods) costs one look.
4. A key that failed rests longer with each failure in a row, whatever wakes it.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

SPACING_SECONDS = 0.05
"""From the end of a key's run to its next: short beside what a person or a bar notices, long beside the spread of the
events that one write of ours causes."""
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 30.0
"""Failures are API calls that were refused after their own retries: soon again, then twice as late each time."""


def backoff_seconds(failures: int) -> float:
    """How long a key rests after so many failures in a row (1 or more)."""
    return min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 30))


class DueTimes(Generic[K]):
    """When which key is due. Not safe for threads; times are seconds of any monotonic clock."""

    def __init__(self, spacing_seconds: float = SPACING_SECONDS) -> None:
        self._spacing = spacing_seconds
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._running: set[K] = set()
        self._failures: dict[K, int] = {}
        self._not_before: dict[K, float] = {}
        self._resting: deque[tuple[float, K]] = deque()

    def __len__(self) -> int:
        """Keys that wait for their time or for a thread."""
        return len(self._due)

    @property
    def running(self) -> frozenset[K]:
        """Keys whose run goes on."""
        return frozenset(self._running)

    def wake(self, key: K, now: float, after: float = 0.0) -> None:
        """Look at `key` in `after` seconds at the latest, but not before its rest is over."""
        due = max(now + after, self._not_before.get(key, now))
        known = self._due.get(key)
        if known is None or due < known:
            self._put(key, due)

    def take(self, now: float) -> K | None:
        """The key that has waited longest of those that are due; it counts as running until `done` or `failed`."""
        while self._heap:
            due, _, key = self._heap[0]
            if key in self._running or self._due.get(key) != due:
                heapq.heappop(self._heap)  # replaced by an earlier time, or put back when its run ends
                continue
            if due > now:
                return None
            heapq.heappop(self._heap)
            del self._due[key]
            self._running.add(key)
            return key
        return None

    def next_due(self) -> float | None:
        """When `take` will have something, unless a wake comes before; None when nothing waits."""
        while self._heap:
            due, _, key = self._heap[0]
            if key not in self._running and self._due.get(key) == due:
                return due
            heapq.heappop(self._heap)
        return None

    def done(self, key: K, now: float, again_after: float | None = None) -> None:
        """The run ended well; the next is due when something woke the key meanwhile, or after `again_after`."""
        self._running.discard(key)
        self._failures.pop(key, None)
        self._rest(key, now, now + self._spacing)
        if again_after is not None:
            self.wake(key, now, again_after)
        if key in self._due:
            self._put(key, max(self._due[key], self._not_before[key]))

    def failed(self, key: K, now: float) -> float:
        """The run raised; seconds until the next."""
        self._running.discard(key)
        self._failures[key] = self._failures.get(key, 0) + 1
        delay = backoff_seconds(self._failures[key])
        self._rest(key, now, now + delay)
        self._put(key, now + delay)
        return delay

    def _put(self, key: K, due: float) -> None:
        self._due[key] = due
        if key not in self._running:
            heapq.heappush(self._heap, (due, next(self._order), key))

    def _rest(self, key: K, now: float, until: float) -> None:
        self._not_before[key] = until
        self._resting.append((until, key))
        while self._resting and self._resting[0][0] <= now:  # so that keys that are gone leave nothing behind
            past, old = self._resting.popleft()
            if self._not_before.get(old) == past:
                del self._not_before[old]


class WorkQueue(Generic[K]):
    """Runs `work(key)` in threads of its own; `work` returns in how many seconds it wants to be called again."""

    def __init__(
        self,
        work: Callable[[K], float | None],
        *,
        workers: int = 8,
        on_error: Callable[[K, Exception, float], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        spacing_seconds: float = SPACING_SECONDS,
    ) -> None:
        """`on_error` hears of an exception of `work` and of the seconds until the next attempt."""
        self._work = work
        self._on_error = on_error
        self._clock = clock
        self._schedule: DueTimes[K] = DueTimes(spacing_seconds)
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._loop, name=f"reconcile-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> None:
        """Begin to work. Wakes from before are kept."""
        for thread in self._threads:
            thread.start()

    def wake(self, key: K, after: float = 0.0) -> None:
        """Look at `key` in `after` seconds at the latest. From any thread, at any time, without waiting."""
        with self._changed:
            self._schedule.wake(key, self._clock(), after)
            self._changed.notify()

    def stop(self, timeout: float) -> bool:
        """Begin no further run and wait for those that go on; whether all ended within `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        end = self._clock() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def is_healthy(self) -> bool:
        """Whether every thread that was started lives."""
        return all(thread.is_alive() for thread in self._threads if thread.ident is not None)

    @property
    def depth(self) -> int:
        """Keys that wait for their time or for a thread."""
        with self._changed:
            return len(self._schedule)

    def _loop(self) -> None:
        while (key := self._next()) is not None:
            try:
                again_after = self._work(key)
            except Exception as error:
                with self._changed:
                    delay = self._schedule.failed(key, self._clock())
                    self._changed.notify()
                self._on_error(key, error, delay)
            else:
                with self._changed:
                    self._schedule.done(key, self._clock(), again_after)
                    self._changed.notify()

    def _next(self) -> K | None:
        with self._changed:
            while not self._stopping:
                now = self._clock()
                key = self._schedule.take(now)
                if key is not None:
                    return key
                due = self._schedule.next_due()
                self._changed.wait(None if due is None else max(0.0, due - now))
            return None
