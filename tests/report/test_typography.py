"""Percents in sentences of the gates look like those of the tables."""

from __future__ import annotations

import pytest

from dapt_operator.report.typography import typeset_percents


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "is -9.4% against, within +15.0%",
            "is \N{MINUS SIGN}9.4\N{NARROW NO-BREAK SPACE}% against, within +15.0\N{NARROW NO-BREAK SPACE}%",
        ),
        ("up to 1,000 %", "up to 1,000\N{NARROW NO-BREAK SPACE}%"),
        ("a1-s24 in file:///a%20b/50%20c", "a1-s24 in file:///a%20b/50%20c"),
    ],
)
def test_percents_of_a_sentence_are_typeset(sentence: str, expected: str) -> None:
    assert typeset_percents(sentence) == expected
