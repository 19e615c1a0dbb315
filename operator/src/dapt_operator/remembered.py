"""Remembers results of pure functions by the identity of their arguments.

A reconcile computes mostly what the one before it has computed, from the very same frozen values: parsed resources and
records are cached, so they are the same objects. Comparing identities costs nothing, where hashing a measure of sixteen
tasks costs as much as judging it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
BY_VALUE: Final = frozenset({str, int, float, bool, type(None)})
"""Types of arguments that are compared by value."""


def remembered(size: int) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Return a decorator for a pure function of frozen values: the last `size` results are kept.

    An argument is the same when it is the same object, or an equal text or number. Arguments are given by position. A
    result is kept with its arguments, so that no other object can have the identity of one of them.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        entries: OrderedDict[tuple[object, ...], tuple[tuple[object, ...], Result]] = OrderedDict()
        lock = threading.Lock()

        @wraps(function)
        def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            if named:
                raise TypeError(f"{function.__name__}: give arguments by position")
            # A list, not a generator: this is the whole cost of a call that is remembered.
            key = tuple(
                [
                    (type(argument), argument) if type(argument) in BY_VALUE else id(argument)
                    for argument in arguments
                ]
            )
            with lock:
                entry = entries.get(key)
                if entry is not None:
                    entries.move_to_end(key)
                    return entry[1]
            # Without the lock: two threads may compute the same at once, which is dearer and not wrong.
            result = function(*arguments, **named)
            with lock:
                entries[key] = (arguments, result)
                if len(entries) > size:
                    entries.popitem(last=False)
            return result

        return call

    return decorate
