"""Figures in the report's style: means with their spread over seeds, drawn as PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dapt_operator.report import style

if TYPE_CHECKING:
    from science.experiments.common import Sample

COLOURS = (style.CHOSEN, style.FINAL, style.GENERAL, "#cc79a7", "#e69f00", style.BASE)
"""Okabe and Ito's, in an order in which neighbours differ most."""
MARKERS = ("o", "s", "D", "^", "v", "P")
_HEIGHT_INCHES = 3.9


@dataclass(frozen=True)
class Series:
    """Points that belong together; `names` stand beside them."""

    label: str
    points: tuple[tuple[Sample, Sample], ...]
    """(x, y), a sample over seeds each."""
    names: tuple[str, ...] = ()
    joined: bool = True


def plane(
    series: Sequence[Series], *, x: str = "gain on the domain, nats", y: str = "forgetting, nats"
) -> bytes:
    """Means with bars of one deviation both ways: right is more learned, down is less forgotten."""
    with style.figure(_HEIGHT_INCHES) as (made, axes):
        axes.set_xlabel(f"{x} (right is better)")
        axes.set_ylabel(f"{y} (down is better)")
        for number, one in enumerate(series):
            drawn = [(a, b) for a, b in one.points if len(a) and len(b)]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            axes.errorbar(
                [a.mean for a, _ in drawn],
                [b.mean for _, b in drawn],
                xerr=[_bar(a) for a, _ in drawn],
                yerr=[_bar(b) for _, b in drawn],
                color=colour,
                marker=marker,
                markersize=5.5,
                linewidth=1.2 if one.joined else 0,
                elinewidth=1,
                label=one.label,
                zorder=3,
            )
            for place, ((a, b), name) in enumerate(zip(one.points, one.names, strict=False)):
                if len(a) and len(b):
                    right = place % 2 == 0  # neighbours that lie close keep their names on two sides
                    axes.annotate(
                        name, (a.mean, b.mean), xytext=(6, -2) if right else (-6, 2), textcoords="offset points",
                        fontsize=8, color=colour, ha="left" if right else "right", va="top" if right else "bottom",
                    )  # fmt: skip
        axes.margins(0.12)
        _legend(axes, len(series))
        return style.save(made, "plane")[1]


def lines(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    limit: tuple[float, str] | None = None,
    as_percent: bool = False,
    logarithmic: bool = False,
) -> bytes:
    """Means over a common x with a band of one deviation."""
    with style.figure(_HEIGHT_INCHES) as (made, axes):
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        for number, one in enumerate(series):
            drawn = [(a.mean, b) for a, b in one.points if len(b)]
            places, means = [a for a, _ in drawn], [b.mean for _, b in drawn]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                places, means, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4.5, linewidth=1.4,
                label=one.label, zorder=3,
            )  # fmt: skip
            low = [b.mean - _bar(b) for _, b in drawn]
            high = [b.mean + _bar(b) for _, b in drawn]
            axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)
        if limit is not None:
            axes.axhline(limit[0], color=style.LIMIT, linestyle=(0, (5, 3)), linewidth=1.3)
            axes.annotate(
                limit[1], (0.995, limit[0]), xycoords=("axes fraction", "data"), xytext=(0, 4),
                textcoords="offset points", ha="right", color=style.LIMIT, fontsize=9,
            )  # fmt: skip
        if logarithmic:
            axes.set_yscale("log")
        if as_percent:
            from matplotlib.ticker import FuncFormatter, NullFormatter

            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0%}".replace("-", "−")))
            axes.yaxis.set_minor_formatter(NullFormatter())
        _legend(axes, len(series))
        return style.save(made, "lines")[1]


def _bar(sample: Sample) -> float:
    return sample.deviation if math.isfinite(sample.deviation) else 0.0


def _legend(axes: Any, count: int) -> None:
    if count > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(count, 3))
