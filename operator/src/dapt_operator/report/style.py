"""Defines how charts look: colours for the colour-blind (Okabe and Ito 2008), and shapes besides colours.

On the page a colour is a CSS variable, so that a chart follows the reader's light or dark scheme; a PNG is light.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = "#ffffff"
INK = "#1f2933"
SOFT = "#52606d"
GRID = "#dde3ea"
BASE = "#6b7280"
CHECKPOINT = "#5aa9d6"
CHOSEN = "#0072b2"
FINAL = "#d55e00"
DOMAIN = "#0072b2"
GENERAL = "#009e73"
LIMIT = "#b3261e"
TUNED = "#8c6bb1"
ATTEMPTS = (CHECKPOINT, "#e69f00", GENERAL, "#cc79a7", TUNED)
"""Colours of attempts 1 to 5; later ones start over."""
DARK: Final[Mapping[str, str]] = {
    PAPER: "#161b22",
    INK: "#e6edf3",
    SOFT: "#9da9b5",
    GRID: "#30363d",
    BASE: "#9aa4b2",
    CHECKPOINT: "#79c0ea",
    CHOSEN: "#4fa8e0",
    FINAL: "#f0883e",
    GENERAL: "#2fbf8f",
    LIMIT: "#ff7b72",
    TUNED: "#b79ae0",
    "#e69f00": "#f2b134",
    "#cc79a7": "#e39bc4",
}
"""Each colour of a chart in the dark scheme; text and lines have a contrast of at least 4.5 to the paper."""
TEXT_POINTS = 9
"""Size of all text in a chart."""
MODEL_NAMES = {"base": "base", "chosen": "chosen", "finetuned": "fine-tuned", "final": "final"}
"""Name of each model in tables and charts."""
MODEL_COLOURS = {"base": BASE, "chosen": CHOSEN, "finetuned": TUNED, "final": FINAL}
MODEL_SHAPES = {"base": "o", "chosen": "s", "finetuned": "^", "final": "D"}
Dashes = tuple[int, tuple[int, int]]
"""Offset, and lengths of stroke and gap, in points."""
DASHED: Dashes = (0, (5, 3))
DOTTED: Dashes = (0, (1, 2))
WIDTH_INCHES = 4.6
"""Width of every chart: one for all, and the page shows all in columns of one width, so that text has one size: 14 px
in a column and 9 px on a phone."""
_DOTS_PER_INCH = 160

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": TEXT_POINTS,
    "axes.titlesize": TEXT_POINTS,
    "axes.labelsize": TEXT_POINTS,
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
    "xtick.labelsize": TEXT_POINTS,
    "ytick.labelsize": TEXT_POINTS,
    "legend.fontsize": TEXT_POINTS,
    "svg.fonttype": "path",
    "figure.facecolor": "white",
    "axes.unicode_minus": True,
}


@contextmanager
def figure(height_inches: float, rows: int = 1, **settings: Any) -> Iterator[tuple[Figure, Any]]:
    """Open a figure of the common width, and close it afterwards.

    Args:
        height_inches: height of the figure.
        rows: number of axes, one above the other.
        settings: further arguments of `matplotlib.pyplot.subplots`.

    Yields:
        The figure and its axes; for several rows a sequence of axes.
    """
    # Imported here, since it takes a second that commands without a page need not spend.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(_SETTINGS):
        figure, axes = plt.subplots(
            rows, 1, figsize=(WIDTH_INCHES, height_inches), layout="constrained", **settings
        )
        try:
            yield figure, axes
        finally:
            plt.close(figure)


def save(figure: Figure, name: str) -> tuple[str, bytes]:
    """Return the figure as SVG for the page, with ids that begin with `name`, and as PNG."""
    import matplotlib

    svg, png = io.StringIO(), io.BytesIO()
    # A fixed salt and no date: the same numbers give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    figure.savefig(png, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return _inline(svg.getvalue(), name), png.getvalue()


def _inline(svg: str, name: str) -> str:
    """Return the svg element without prologue, metadata and comments, with a fluid width and ids of its own.

    Several charts stand in one page, where an id of one must not be found by a reference of another.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns(:\w+)?)="[^"]*"', "", head)
    text = f"{head}>{rest}".replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").strip()
    return _COLOUR.sub(_variable, text)


_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def _variable(match: re.Match[str]) -> str:
    """Return a colour of ours as a CSS variable; any other as it is."""
    colour = match[0]
    return f"var(--{_name(colour)})" if colour in DARK else colour


def _name(colour: str) -> str:
    return f"chart-{colour.removeprefix('#')}"


def light_variables() -> str:
    """Return the declarations of all colours for the light scheme."""
    return " ".join(f"--{_name(colour)}: {colour};" for colour in DARK)


def dark_variables() -> str:
    """Return the declarations of all colours for the dark scheme."""
    return " ".join(f"--{_name(colour)}: {dark};" for colour, dark in DARK.items())
