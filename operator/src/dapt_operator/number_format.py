"""Formats numbers for people: one notation for the terminal, for messages and, typeset, for the report. Pure."""

from __future__ import annotations

import math

NOT_MEASURED = "–"
_HUGE = 1e5
"""From here on decimals say nothing: a model that diverged."""
_LONGEST_SECONDS = 1e10
"""Three centuries: from here on a duration has an exponent."""


def duration(seconds: float | None) -> str:
    """Return `45 s`, `3 min 05 s`, `2 h 04 min` or `3 d 4 h`."""
    if seconds is None:
        return NOT_MEASURED
    if not math.isfinite(seconds):
        return _not_finite(seconds)
    if seconds >= _LONGEST_SECONDS:
        return f"{seconds / 86_400:.1e} d"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def clock(seconds: float) -> str:
    """Return elapsed time as `hh:mm:ss`."""
    if not math.isfinite(seconds):
        return _not_finite(seconds)
    whole = max(0, int(seconds))
    return f"{whole // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def count(value: float | None) -> str:
    """Return `950`, `9,999`, `12.3 k`, `4.1 M`, `1.25 B` or `2 T`: three significant digits from ten thousand on."""
    if value is None:
        return NOT_MEASURED
    if abs(value) < 1e4:
        return f"{value:,.0f}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        # 999,950 already rounds to 1e+03 k, so the next unit begins a little below its power of ten.
        if abs(value) >= 0.9995 * unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e3:.3g} k"


def number(value: float | None, digits: int = 3) -> str:
    """Return a value with this many significant digits and its thousands apart: `0.123`, `14.2`, `1,240`."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.2g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def perplexity(value: float | None) -> str:
    """Return a perplexity with two decimals, none from a thousand on, and an exponent from ten million on."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return _not_finite(value)
    if value >= 1e7:
        return f"{value:.1e}"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def percent(share: float | None, *, signed: bool = True) -> str:
    """Return a share in percent with one decimal: `-31.2 %`, or `31.2 %` unsigned."""
    if share is None:
        return NOT_MEASURED
    if not math.isfinite(share):
        return f"{_not_finite(share)} %"
    return f"{with_sign(100 * share) if signed else f'{100 * share:.1f}'} %"


def percent_with_error(share: float | None, error: float | None) -> str:
    """Return a signed share in percent, with its standard error where there is one: `+14.9 ± 0.3 %`."""
    if share is None or error is None or not math.isfinite(share):
        return percent(share)
    return f"{with_sign(100 * share)} ± {100 * error:.1f} %"


def with_sign(value: float) -> str:
    """Return one decimal and the sign; what rounds to zero is `+0.0`, and a huge value has an exponent."""
    return f"{value:+.1e}" if abs(value) >= _HUGE else f"{round(value, 1) + 0.0:+.1f}"


def points(share: float, error: float | None = None, *, signed: bool = False) -> str:
    """Return a share in points of a hundred, with its standard error where there is one: `41.0 ± 2.2`."""
    text = with_sign(100 * share) if signed else f"{100 * share:.1f}"
    return text if error is None else f"{text} ± {100 * error:.1f}"


def size(value: float) -> str:
    """Return bytes as GiB, MiB or KiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if value >= unit / 2:
            return f"{value / unit:.1f} {name}"
    return f"{value / 1024:.0f} KiB"


def plural(number: int, singular: str, plural: str | None = None) -> str:
    """Return `1 step` or `2 steps`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def epochs_text(epochs: float) -> str:
    """Return `1 epoch`, `2 epochs` or `0.5 epochs`."""
    return f"{epochs:g} epoch{'' if epochs == 1 else 's'}"


def typeset(text: str) -> str:
    """Return the text with real minus signs, and with narrow spaces before units, at which no line breaks."""
    for unit in ("%", "k", "M", "B", "T"):
        text = text.replace(f" {unit}", f"\N{NARROW NO-BREAK SPACE}{unit}")
    return text.replace("-", "\N{MINUS SIGN}")


def _not_finite(value: float) -> str:
    return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
