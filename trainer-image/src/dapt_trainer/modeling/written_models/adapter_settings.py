"""Checks what an adapter's configuration holds: numbers and names, of the types and sizes that dapt and PEFT write.

A pod that trains writes it, and whoever loads the published adapter takes patterns in it for regular expressions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from pydantic import JsonValue

_MAX_RANK: Final = 1 << 20
_MAX_SHOWN: Final = 80
_PLAIN_PATTERN: Final = re.compile(r"(?:\^|\.\*)?(?:[\w-]|\\?\.)+\$?")
"""A name of a module, perhaps with its dots escaped and its ends marked; PEFT names those of experts by `.*` and their
last part. Nothing in it repeats a group, so it takes no time."""


def setting_problems(settings: Mapping[str, JsonValue]) -> list[str]:
    """Return a phrase for each setting of an adapter that is not what it must be; those left out count for nothing."""
    return [
        f"{name} is {_shown(settings[name])}, and {expected} is expected"
        for name, (is_fitting, expected) in _SETTINGS.items()
        if settings.get(name) is not None and not is_fitting(settings[name])
    ]


def _shown(value: JsonValue) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = ascii(value)[: _MAX_SHOWN + 1]
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _is_flag(value: JsonValue) -> bool:
    return isinstance(value, bool)


def _is_rank(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_RANK


def _is_scale(value: JsonValue) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -_MAX_RANK <= value <= _MAX_RANK and math.isfinite(value)  # type: ignore[operator,arg-type]


def _is_name(value: JsonValue) -> bool:
    return isinstance(value, str) and len(value) <= 500 and value.isprintable()


def _are_names(value: JsonValue) -> bool:
    return isinstance(value, list) and all(_is_name(name) for name in value)


def _is_pattern_or_names(value: JsonValue) -> bool:
    return isinstance(value, str) or _are_names(value)


def _of_patterns(fits: Callable[[JsonValue], bool]) -> Callable[[JsonValue], bool]:
    def are_fitting(value: JsonValue) -> bool:
        return isinstance(value, dict) and all(
            _is_name(pattern) and _PLAIN_PATTERN.fullmatch(pattern) and fits(number)
            for pattern, number in value.items()
        )

    return are_fitting


def _are_rows(value: JsonValue) -> bool:
    if isinstance(value, dict):
        return all(
            _is_name(name) and isinstance(rows, list) and _are_rows(rows) for name, rows in value.items()
        )
    return isinstance(value, list) and all(
        isinstance(row, int) and not isinstance(row, bool) and 0 <= row < 1 << 31 for row in value
    )


_SETTINGS: Final[Mapping[str, tuple[Callable[[JsonValue], bool], str]]] = {
    "r": (_is_rank, "a rank above 0"),
    "lora_alpha": (_is_scale, "a number"),
    "use_rslora": (_is_flag, "true or false"),
    "fan_in_fan_out": (_is_flag, "true or false"),
    "task_type": (_is_name, "a name"),
    "target_modules": (_is_pattern_or_names, "a list of names"),
    "target_parameters": (_is_pattern_or_names, "a list of names"),
    "rank_pattern": (_of_patterns(_is_rank), "ranks by the names of modules"),
    "alpha_pattern": (_of_patterns(_is_scale), "numbers by the names of modules"),
    "trainable_token_indices": (_are_rows, "a list of rows, or one for each module"),
}
