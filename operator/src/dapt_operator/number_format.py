"""Numbers as people read them; pure."""

from __future__ import annotations

import math


def duration(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `2 h 04 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def clock(seconds: float) -> str:
    """Elapsed time as `hh:mm:ss`."""
    whole = max(0, int(seconds))
    return f"{whole // 3600:02d}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def count(value: float) -> str:
    """`950`, `9,999`, `12.3 k`, `4.1 M`, `1.25 B`, `2 T`: three significant digits from ten thousand on."""
    if abs(value) < 1e4:
        return f"{value:,.0f}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= 0.9995 * unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e3:.3g} k"


def perplexity(value: float | None) -> str:
    """Three significant digits or more; an en dash when it was not measured."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share with its sign, `-31.2 %`."""
    return "–" if value is None else f"{signed(100 * value)} %"


def signed(value: float) -> str:
    """One decimal and the sign; what rounds to zero is `+0.0`, and what is enormous has two digits."""
    return f"{value:+.1e}" if abs(value) >= 1e5 else f"{round(value, 1) + 0.0:+.1f}"


def points(value: float) -> str:
    """A share as points with one decimal."""
    return f"{100 * value:.1f}"


def size(value: float) -> str:
    """Bytes as GiB, MiB or KiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if value >= unit / 2:
            return f"{value / unit:.1f} {name}"
    return f"{value / 1024:.0f} KiB"


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
