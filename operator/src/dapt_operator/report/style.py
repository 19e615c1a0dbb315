"""How the charts look: colours that colour-blind eyes tell apart (Okabe and Ito 2008), shapes besides colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INK = "#1f2933"
SOFT = "#52606d"
GRID = "#dde3ea"
BASE = "#6b7280"
CHOSEN = "#0072b2"
FINAL = "#d55e00"
DOMAIN = "#0072b2"
GENERAL = "#009e73"
LIMIT = "#b3261e"
TUNED = "#8c6bb1"
MODEL_COLOURS = {"base": BASE, "chosen": CHOSEN, "finetuned": TUNED, "final": FINAL}
MODEL_SHAPES = {"base": "o", "chosen": "s", "finetuned": "^", "final": "D"}
WIDTH_INCHES = 5.2
"""One width for all, so that text has one size: 13 px in a column, 9 px on a phone."""
_DOTS_PER_INCH = 160

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "axes.unicode_minus": True,
}


@contextmanager
def figure(height_inches: float, rows: int = 1, **settings: Any) -> Iterator[tuple[Any, Any]]:
    """A figure of the common width and its axes, closed afterwards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_SETTINGS):
        made, axes = plt.subplots(
            rows, 1, figsize=(WIDTH_INCHES, height_inches), layout="constrained", **settings
        )
        try:
            yield made, axes
        finally:
            plt.close(made)


def save(made: Any, name: str) -> tuple[str, bytes]:
    """SVG to stand in the page, with ids of its own, and PNG."""
    import matplotlib

    svg, png = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        made.savefig(
            svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    made.savefig(png, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return _inline(svg.getvalue(), name), png.getvalue()


def _inline(svg: str, name: str) -> str:
    """The svg element alone: no prologue, no metadata, no comments, fluid width, ids that no other chart uses."""
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns(:\w+)?)="[^"]*"', "", head)
    text = f"{head}>{rest}".replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    return text.replace("url(#", f"url(#{name}-").strip()
