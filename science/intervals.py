"""Intervals of a mean of few values: Student's t, since a spread that few values give is itself uncertain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final

T_95: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantiles of 97.5 % for 1 to 9 degrees of freedom."""


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean of 2 to 10 values; infinity for one value or none."""
    if len(values) < 2:
        return math.inf
    return T_95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))


def with_interval(values: Sequence[float], form: str = "+.3f") -> str:
    """Return `+0.123 ± 0.004 (3)`; without an interval of one value, and a hyphen of none."""
    if not values:
        return "-"
    mean, width = statistics.fmean(values), half_width(values)
    spread = f" ± {width:{form.lstrip('+')}}" if math.isfinite(width) else ""
    return f"{mean:{form}}{spread} ({len(values)})"
