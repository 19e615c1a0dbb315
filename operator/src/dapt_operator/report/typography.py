"""Typesets the numbers of the page: the formats of `number_format`, with real minus signs and narrow spaces."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from dapt_operator import number_format
from dapt_operator.number_format import typeset

P = ParamSpec("P")
"""Parameters of a formatter."""


def _typeset(format_number: Callable[P, str]) -> Callable[P, str]:
    @wraps(format_number)
    def formatted(*args: P.args, **kwargs: P.kwargs) -> str:
        return typeset(format_number(*args, **kwargs))

    return formatted


count = _typeset(number_format.count)
number = _typeset(number_format.number)
percent = _typeset(number_format.percent)
perplexity = _typeset(number_format.perplexity)
points = _typeset(number_format.points)
