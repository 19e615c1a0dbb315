"""Typesets the numbers of the page: the formats of `number_format`, with real minus signs and narrow spaces."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec

from dapt_operator import number_format
from dapt_operator.number_format import typeset

MINUS: Final = "\N{MINUS SIGN}"
P = ParamSpec("P")
"""Parameters of a formatter."""


def _typeset(format_number: Callable[P, str]) -> Callable[P, str]:
    @wraps(format_number)
    def formatted(*args: P.args, **kwargs: P.kwargs) -> str:
        return typeset(format_number(*args, **kwargs))

    return formatted


_PERCENT: Final = re.compile(r"(?<![\w.-])([+-]?)([0-9][0-9,]*(?:\.[0-9]+)?)\s?%(?!\w)")


def typeset_percents(sentence: str) -> str:
    """Return a sentence of a gate with its percents as the tables show them: `−9.4 %` for `-9.4%`."""
    return _PERCENT.sub(
        lambda match: f"{match[1].replace('-', MINUS)}{match[2]}\N{NARROW NO-BREAK SPACE}%",
        sentence,
    )


count = _typeset(number_format.count)
number = _typeset(number_format.number)
percent = _typeset(number_format.percent)
percent_with_error = _typeset(number_format.percent_with_error)
perplexity = _typeset(number_format.perplexity)
points = _typeset(number_format.points)
