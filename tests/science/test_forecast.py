"""The forecast's powers and errors are those of the committed records, and planted ones are found again."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dapt_operator.plan.stage_parts.forecast import RATE_POWER, REPLAY_POWER, TIME_POWER
from science import forecast, store

KNOWN = forecast.readings(store.RESULTS)


def test_the_powers_of_the_product_are_fitted_on_the_records() -> None:
    assert forecast.fitted(forecast.usual(KNOWN)) == pytest.approx(
        (TIME_POWER, RATE_POWER, REPLAY_POWER), abs=0.005
    )


def test_the_range_that_is_shown_is_the_largest_error_of_the_records() -> None:
    assert forecast.shown_errors() == pytest.approx(forecast.largest_errors(KNOWN), abs=0.006)


def test_planted_powers_are_found_and_a_setting_is_forecast_without_its_own_runs() -> None:
    powers = (0.4, 0.2, 0.6)

    def planted(reading: forecast.Reading, factor: float = 1.0) -> forecast.Reading:
        grown = factor * sum(power * term for power, term in zip(powers, reading.terms, strict=True))
        return replace(reading, last_rise=reading.rise * math.exp(grown))

    usual = forecast.usual(KNOWN)
    exact = [planted(reading) for reading in usual]
    assert forecast.fitted(exact) == pytest.approx(powers)
    odd = usual[0].setting
    bent = [planted(reading, 2.0 if reading.setting == odd else 1.0) for reading in usual]
    errors = forecast.held_out_errors(bent)
    of_odd = [abs(error) for reading, error in errors if reading.setting == odd]
    # From the others alone it is forecast as if it were like them, so the error is all that it grew more.
    assert max(of_odd) == pytest.approx(
        max(abs(reading.grown) for reading in exact if reading.setting == odd)
    )
