"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from dapt_operator import number_format


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (86_400 + 7200, "1 d 2 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert number_format.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (950, "950"),
        (9_999, "9,999"),
        (12_345, "12.3 k"),
        (4_100_000, "4.1 M"),
        (2e9, "2 B"),
        (1.234e12, "1.23 T"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert number_format.count(value) == text


def test_perplexities() -> None:
    assert [number_format.perplexity(value) for value in (None, 7.126, 12_345.6, math.inf)] == [
        "–",
        "7.13",
        "12,346",
        "∞",
    ]


def test_shares_points_and_bytes() -> None:
    assert [number_format.percent(value) for value in (None, -0.3123, 0.02)] == ["–", "-31.2 %", "+2.0 %"]
    assert number_format.points(0.4567) == "45.7"
    assert [number_format.size(value) for value in (900, 2**28, 3 * 2**30)] == [
        "1 KiB",
        "256.0 MiB",
        "3.0 GiB",
    ]
    assert [number_format.with_sign(value) for value in (-0.01, 0.04, -3.25)] == ["+0.0", "+0.0", "-3.2"]
    assert [number_format.plural(number, "step") for number in (1, 1200)] == ["1 step", "1,200 steps"]
    assert number_format.clock(3725) == "01:02:05"


def test_what_was_not_measured_is_a_dash_in_every_format() -> None:
    formats = (number_format.duration, number_format.count, number_format.number, number_format.perplexity)
    assert {formatted(None) for formatted in formats} | {number_format.percent(None)} == {"–"}


def test_what_is_not_finite_or_huge_stays_short() -> None:
    assert [number_format.percent(value) for value in (math.inf, math.nan, 12_345.0)] == [
        "∞ %",
        "not a number %",
        "+1.2e+06 %",
    ]
    assert number_format.perplexity(2.5e9) == "2.5e+09"


def test_typeset_numbers_have_a_minus_sign_and_a_space_that_does_not_break() -> None:
    assert number_format.typeset(number_format.percent(-0.343)) == "\u221234.3\u202f%"
    assert number_format.typeset(number_format.count(4_100_000)) == "4.1\u202fM"


def test_durations_that_no_run_takes_are_short_texts() -> None:
    assert [number_format.duration(value) for value in (math.inf, -math.inf, math.nan)] == [
        "∞",
        "-∞",
        "not a number",
    ]
    assert [number_format.clock(value) for value in (math.inf, math.nan)] == ["∞", "not a number"]
    assert number_format.duration(1e300) == "1.2e+295 d"
