"""Waiting for what a cluster does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def eventually(
    look: Callable[[], Value], what: str = "", *, seconds: float = 30.0, every_seconds: float = 0.05
) -> Value:
    """The first value of `look` that is true; failed assertions and missing fields count as false.

    Raises:
        AssertionError: none came within so many seconds; says what was awaited and what was there instead.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            found = look()
            if found:
                return found
            last = found
        except (AssertionError, LookupError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what or 'what is awaited'} did not come within {seconds:g} s: {last!r}")
        time.sleep(every_seconds)
