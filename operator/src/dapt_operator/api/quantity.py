"""Parses Kubernetes quantities, as far as a launcher counts with them."""

from __future__ import annotations

import math

_SUFFIXES = {
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
    "Ei": 2.0**60,
}


def parse_quantity(text: str) -> float:
    """Return the value of a quantity in its base unit (cores or bytes).

    >>> parse_quantity("500m"), parse_quantity("2Gi")
    (0.5, 2147483648.0)

    Raises:
        ValueError: not a quantity.
    """
    number = text.rstrip("mkKMGTPEi")
    suffix = text[len(number) :]
    try:
        amount = float(number) * _SUFFIXES[suffix]
        if not math.isfinite(amount):
            raise ValueError
        return amount
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is not a Kubernetes quantity such as '8', '500m' or '64Gi'") from None


def is_quantity(value: object) -> bool:
    """Return whether Kubernetes accepts a value as a quantity: a text of that form, or a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    try:
        return parse_quantity(str(value)) >= 0
    except ValueError:
        return False
