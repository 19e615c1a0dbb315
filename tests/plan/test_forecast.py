"""Tests the forecast of general perplexity at the end: what it follows from, its range, and where there is none."""

from __future__ import annotations

import math

import pytest

from dapt_operator.plan.stage_parts.forecast import (
    ERRORS,
    RATE_POWER,
    REPLAY_POWER,
    TIME_POWER,
    TrainingCourse,
    forecast,
)

COSINE = TrainingCourse(total_steps=1000, replay_fraction=0.25, warmup_fraction=0.01, minimum_ratio=0.1)
CONSTANT = TrainingCourse(total_steps=1000, replay_fraction=0.0, warmup_fraction=0.0, minimum_ratio=1.0)


def test_a_rise_grows_with_the_steps_that_are_left_and_shrinks_with_the_rate_that_falls() -> None:
    constant = forecast(CONSTANT, 500, 0.1)
    assert constant is not None
    assert constant.expected == pytest.approx(math.expm1(0.1 * 2**TIME_POWER))
    cosine = forecast(COSINE, 505, 0.1)
    assert cosine is not None
    growth = (1000 / 505) ** (TIME_POWER - 0.25 * REPLAY_POWER)
    assert cosine.expected == pytest.approx(math.expm1(0.1 * growth * (0.1 / 0.55) ** RATE_POWER))
    assert cosine.expected < math.expm1(0.1) < constant.expected


def test_the_range_is_that_of_the_records_and_narrows_to_the_end() -> None:
    at_half = forecast(COSINE, 500, 0.1)
    assert at_half is not None
    error = dict(ERRORS)[0.5]
    assert math.log1p(at_half.most) == pytest.approx(math.log1p(at_half.expected) * math.exp(error))
    assert math.log1p(at_half.least) == pytest.approx(math.log1p(at_half.expected) * math.exp(-error))
    widths = []
    for step in (100, 250, 500, 750, 950, 999):
        found = forecast(COSINE, step, 0.1)
        assert found is not None
        widths.append(math.log1p(found.most) / math.log1p(found.least))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("course", "step", "rise_nats"),
    [
        (COSINE, 99, 0.1),
        (COSINE, 1000, 0.1),
        (COSINE, 500, 0.0),
        (COSINE, 500, -0.01),
        (COSINE, 500, math.inf),
        (COSINE, 500, math.nan),
        (TrainingCourse(1000, 0.25, warmup_fraction=0.3, minimum_ratio=0.1), 300, 0.1),
        (TrainingCourse(1000, 0.25, warmup_fraction=0.01, minimum_ratio=0.0), 500, 0.1),
    ],
    ids=["early", "end", "no rise", "improved", "infinite", "no number", "warm-up", "rate to zero"],
)
def test_there_is_no_forecast_where_the_records_say_nothing(
    course: TrainingCourse, step: int, rise_nats: float
) -> None:
    assert forecast(course, step, rise_nats) is None


def test_a_huge_rise_has_a_finite_forecast() -> None:
    found = forecast(CONSTANT, 500, 1e6)
    assert found is not None
    assert math.isfinite(found.most)
