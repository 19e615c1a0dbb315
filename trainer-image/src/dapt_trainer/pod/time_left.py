"""Estimates the time that is left of a stage from the shares that it reports."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeLeft:
    """Assumes that the rest takes as long as what was done since the first share."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._first: tuple[float, float] | None = None
        """Time and share of the first report. A stage that continues begins with a share that took no time."""
        self._last = 0.0

    def seconds(self, fraction: float) -> float | None:
        """Return the seconds that are left once this share is done; None while there is nothing to estimate from."""
        now = self._clock()
        if self._first is None or fraction < self._last:  # it begins again, or with another part
            self._first = (now, fraction)
        self._last = fraction
        started, before = self._first
        done = fraction - before
        return (now - started) * (1.0 - fraction) / done if done > 0.0 else None
