"""Forecasts general perplexity at the end of an attempt from its newest reading. No gate and no stop reads it.

The rise of the general loss over the base model's grows with the steps and shrinks with the rate, and the more replay
there is, the less it grows. With r the rise in nats, t the step, T the last one and l the learning rate:

    r(T) = r(t) x (T / t)^(TIME_POWER - REPLAY_POWER x replay) x (l(T) / l(t))^RATE_POWER

Powers and errors are fitted on the recorded runs (`science/forecast.py`; docs/science.md has the table): full training,
a cosine or a constant rate, no penalty, from the base model. Where a run is unlike them there is no forecast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

TIME_POWER: Final = 0.31
RATE_POWER: Final = 0.30
REPLAY_POWER: Final = 0.80
ERRORS: Final = (
    (0.1, 0.77),
    (0.2, 0.43),
    (0.3, 0.36),
    (0.4, 0.30),
    (0.5, 0.20),
    (0.6, 0.17),
    (0.7, 0.15),
    (0.8, 0.11),
    (0.9, 0.06),
)
"""(part of the steps done, largest error of ln r(T) over the recorded settings, each forecast from the others)."""
MOST_PASSES: Final = 1.05
"""Passes over the domain up to which there is a forecast: the recorded runs read at most 0.7 of it, and one that reads
its text 31 times goes on forgetting to the end."""
EARLIEST: Final = ERRORS[0][0]
"""Part of the steps before which there is no forecast."""


@dataclass(frozen=True)
class TrainingCourse:
    """What the forecast knows of an attempt beforehand."""

    total_steps: int
    replay_fraction: float
    warmup_fraction: float
    minimum_ratio: float
    """Last learning rate as a share of the peak; 1 for a constant rate."""

    def rate_at(self, step: int) -> float:
        """Return the learning rate after warm-up as a share of the peak: half a cosine from 1 to `minimum_ratio`."""
        warmup = self.warmup_fraction * self.total_steps
        part = (step - warmup) / max(1.0, self.total_steps - warmup)
        height = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, part))))
        return self.minimum_ratio + (1.0 - self.minimum_ratio) * height


@dataclass(frozen=True)
class Forecast:
    """The rise of general perplexity at the end, as a share of the base model's, with its range."""

    expected: float
    least: float
    most: float


def forecast(course: TrainingCourse, step: int, rise_nats: float) -> Forecast | None:
    """Return what to expect at the end; None too early, at the end, in warm-up, and where nothing was forgotten.

    Args:
        course: of the attempt.
        step: of the reading.
        rise_nats: general loss over the base model's there, in nats a token.
    """
    part = step / course.total_steps
    if not EARLIEST <= part < 1.0 or part <= course.warmup_fraction or not 0.0 < rise_nats < math.inf:
        return None
    rate, last_rate = course.rate_at(step), course.rate_at(course.total_steps)
    if last_rate <= 0.0:
        # A rate that falls to zero is unlike every recorded run.
        return None
    grown = (TIME_POWER - REPLAY_POWER * course.replay_fraction) * -math.log(part)
    expected = rise_nats * math.exp(grown + RATE_POWER * math.log(last_rate / rate))
    error = _error_at(part)
    least, most = expected * math.exp(-error), expected * math.exp(error)
    return Forecast(_as_share(expected), _as_share(least), _as_share(most))


def _error_at(part: float) -> float:
    """Return the error of ln r(T) at a part of the steps, in a straight line between the recorded parts."""
    for (before, larger), (after, smaller) in pairwise(ERRORS):
        if part <= after:
            return larger + (smaller - larger) * (part - before) / (after - before)
    last, error = ERRORS[-1]
    return error * (1.0 - part) / (1.0 - last)


def _as_share(nats: float) -> float:
    return math.expm1(min(nats, 700.0))  # above 709 expm1 overflows
