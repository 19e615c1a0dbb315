"""Knows in which unit a field of the API counts, and what a value would be in another unit.

The unit follows from the field's name, bounds and description, so a new field has one too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final


class Unit(Enum):
    """What a number counts."""

    SHARE = "a share of 1"
    POINTS = "points of 100"
    RATE = "a learning rate"
    SECONDS = "seconds"
    HOURS = "hours"
    TOKENS = "tokens"
    LENGTH = "tokens of a sequence"
    SEQUENCES = "sequences"
    GIB = "GiB"
    TFLOPS = "TFLOP/s"
    PLAIN = "a number"


_BY_ENDING: Final = (
    ("learningrate", Unit.RATE),
    ("fraction", Unit.SHARE),
    ("ratio", Unit.SHARE),
    ("share", Unit.SHARE),
    ("seconds", Unit.SECONDS),
    ("hours", Unit.HOURS),
    ("tokens", Unit.TOKENS),
    ("sequencelength", Unit.LENGTH),
    ("batchsize", Unit.SEQUENCES),
    ("gib", Unit.GIB),
    ("tflops", Unit.TFLOPS),
)

# Patterns are texts: a manifest without such values, which is nearly every one, does not wait for their compilation.
_NUMBER: Final = r"([0-9]+(?:[.,][0-9]+)?(?:[eE][+-]?[0-9]+)?)"
_PERCENT: Final = rf"{_NUMBER}\s*(?:%|percent|per cent)"
_POINTS: Final = rf"{_NUMBER}\s*(?:%|percent|points?|pp|pt)"
_DURATION: Final = (
    r"(?:[0-9]+(?:\.[0-9]+)?\s*(?:ms|s|sec|seconds?|m|min|minutes?|h|hours?|d|days?|w|weeks?)\s*)+"
)
_DURATION_PART: Final = r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)"
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MAGNITUDE: Final = rf"{_NUMBER}\s*(k|m|mio|million|b|g|bn|billion|t|trillion)(?:\s*tok(?:en)?s?)?"
_FACTORS: Final = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_MEMORY: Final = rf"{_NUMBER}\s*(ki|mi|gi|ti|k|m|g|t)?(?:i?b)?"
_BYTES: Final = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_GROUPED: Final = r"[0-9]{1,3}(?:[ ,'_][0-9]{3})+"


def unit_of(name: str, schema: dict[str, Any]) -> Unit | None:
    """Return the unit of a field; None for what is no number. name: of the field, or of the list that it is in."""
    if schema.get("type") not in ("number", "integer"):
        return None
    plain = name.lower()
    for ending, unit in _BY_ENDING:
        if plain.endswith(ending):
            return unit
    description = schema.get("description", "")
    if schema["type"] == "number":
        if description.startswith("Points"):
            return Unit.POINTS
        # A number that cannot be above 1 is a part of something, whatever it is called.
        if schema.get("maximum", 2) <= 1 or "as a share" in description:
            return Unit.SHARE
    return Unit.PLAIN


def readings(value: object, unit: Unit, *, is_integer: bool) -> Iterator[tuple[str, int | float]]:
    """Yield what a value that is not accepted may have meant: (`for 15 % write 0.15`, 0.15), the likeliest first."""
    if isinstance(value, bool):
        return
    candidates = _of_text(value.strip(), unit) if isinstance(value, str) else _of_number(value, unit)
    for meaning, number in candidates:
        if is_integer and not float(number).is_integer():
            continue
        number = round(number) if is_integer else float(f"{number:.6g}")
        if isinstance(value, str) and _is_number(value.strip()):
            yield f"write it without quotes: {value.strip()}", number
        elif isinstance(value, str) and re.fullmatch(_GROUPED, value.strip()):
            yield f"write it without separators: {number_text(number)}", number
        else:
            yield f"{meaning} {number_text(number)}", number


def number_text(number: int | float) -> str:
    """Return a number as YAML has it, without a needless `.0`."""
    return f"{int(number)}" if float(number).is_integer() and abs(number) < 1e15 else f"{number:.6g}"


def _of_text(text: str, unit: Unit) -> Iterator[tuple[str, float]]:
    plain = _plain_number(text)
    if plain is not None:
        yield "write", plain
        return
    if unit is Unit.SHARE and (match := re.fullmatch(_PERCENT, text, re.IGNORECASE)):
        yield f"for {text} write", _float(match[1]) / 100
    elif unit is Unit.POINTS and (match := re.fullmatch(_POINTS, text, re.IGNORECASE)):
        yield f"for {text} write", _float(match[1])
    elif unit in (Unit.SECONDS, Unit.HOURS) and re.fullmatch(_DURATION, text.lower()):
        seconds = sum(
            float(number) * _SECONDS["ms" if name == "ms" else name[0]]
            for number, name in re.findall(_DURATION_PART, text.lower())
        )
        yield f"for {text} write", seconds if unit is Unit.SECONDS else seconds / 3600
    elif unit is Unit.GIB and (match := re.fullmatch(_MEMORY, text, re.IGNORECASE)):
        yield f"for {text} write", _float(match[1]) * _BYTES[(match[2] or "gi").lower()] / 2**30
    elif match := re.fullmatch(_MAGNITUDE, text, re.IGNORECASE):
        letter = match[2][0].lower()
        # The lengths of sequences are powers of two: 4k is 4,096.
        factor = 1024.0 if unit is Unit.LENGTH and letter == "k" else _FACTORS[letter]
        yield f"for {text} write", _float(match[1]) * factor


def _of_number(value: object, unit: Unit) -> Iterator[tuple[str, float]]:
    if not isinstance(value, int | float) or not -1e300 < value < 1e300:
        return
    shown = number_text(value)
    if unit is Unit.SHARE:
        yield f"for {shown} % write", value / 100
    elif unit is Unit.SECONDS:
        yield f"for {shown} milliseconds write", value / 1000
    elif unit is Unit.GIB:
        yield f"for {shown} MiB write", value / 1024
        yield f"for {shown} bytes write", value / 2**30
    elif unit is Unit.TFLOPS:
        yield f"for {shown} FLOP/s write", value / 1e12


def _plain_number(text: str) -> float | None:
    """Return the number of a text in quotes, with thousands separators or with a decimal comma; else None."""
    if _is_number(text):
        return float(text.replace("_", ""))
    if re.fullmatch(_GROUPED, text):
        return float(re.sub(r"[ ,'_]", "", text))
    return float(text.replace(",", ".")) if re.fullmatch(r"[0-9]+,[0-9]+", text) else None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9][0-9_]*(\.[0-9]*)?([eE][+-]?[0-9]+)?", text) is not None


def _float(text: str) -> float:
    return float(text.replace(",", "."))
