"""Numbers as the report writes them; pure."""

from __future__ import annotations

import math

_ENORMOUS = 1000.0
"""A share from which all its digits say nothing: a model that diverged."""
_THIN_SPACE = "\u202f"
"""Narrow, and no line ends at it."""
NONE = "–"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, thousands apart: `14.2`, `1,240`; an en dash for nothing."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number"
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.2g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def minus(text: str) -> str:
    """A real minus sign."""
    return text.replace("-", "−")


def percent(share: float | None, *, signed: bool = True) -> str:
    """`−34.1 %`."""
    if share is None:
        return NONE
    if not math.isfinite(share):
        return f"∞{_THIN_SPACE}%"
    if abs(share) >= _ENORMOUS:
        return minus(f"{100 * share:+.1e}{_THIN_SPACE}%")
    return minus(f"{100 * share:+.1f}{_THIN_SPACE}%" if signed else f"{100 * share:.1f}{_THIN_SPACE}%")


def points(share: float, error: float | None = None, *, signed: bool = False) -> str:
    """A share as points of a hundred: `41.0 ± 2.2`."""
    text = minus(f"{100 * share:+.1f}" if signed else f"{100 * share:.1f}")
    return text if error is None else f"{text} ± {100 * error:.1f}"


def count(value: float | None) -> str:
    """`950`, `60.2 k`, `4.1 M`, `2.0 B`."""
    if value is None:
        return NONE
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            shown = f"{value / (1e3 if unit == 'k' else limit):.1f}"
            return f"{shown}{_THIN_SPACE}{unit}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """`45 s`, `3 min 05 s`, `2 h 04 min`."""
    if seconds is None:
        return NONE
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def gibibytes(value: float) -> str:
    """Bytes as GiB, or MiB below half a GiB."""
    return f"{value / 2**30:.1f} GiB" if value >= 2**29 else f"{value / 2**20:.0f} MiB"
