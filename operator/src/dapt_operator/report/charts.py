"""Draws the charts of scores, sources and stages, and defines what all charts share.

A function that draws takes plain values and returns SVG for the page, PNG, and a description in text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dapt_contract.stages.prepare import SourceFacts
from dapt_operator.number_format import duration, typeset
from dapt_operator.report import style
from dapt_operator.report.label_placement import Box
from dapt_operator.report.typography import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_NAME_CHARACTERS: Final = 34
_POINTS_PER_INCH: Final = 72
_LABEL_BACKGROUND: Final = {"facecolor": style.PAPER, "edgecolor": "none", "pad": 0.5, "alpha": 0.85}


@dataclass(frozen=True)
class Chart:
    """One chart in all its forms."""

    name: str
    svg: str
    png: bytes
    description: str
    """What the chart shows, for readers who do not see it."""


@dataclass(frozen=True)
class GateLines:
    """Limits that a chart draws as lines; None where there is none."""

    max_general_increase: float | None = None
    """Largest rise of general perplexity, as a share of the base model's."""
    min_domain_decrease: float | None = None
    """Smallest fall of domain perplexity, as a share of the base model's."""
    hard_stop: float | None = None
    """Rise of general perplexity at which a run is stopped at once, as a share of the base model's."""


def draw_horizontal_limit(axes: Axes, value: float, text: str, dashes: style.Dashes) -> None:
    """Draw a limit of the vertical axis, with its text above the line at the right."""
    axes.axhline(value, color=style.LIMIT, linestyle=dashes, linewidth=1.3)
    axes.annotate(
        text,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 4),
        textcoords="offset points",
        ha="right",
        color=style.LIMIT,
        bbox=_LABEL_BACKGROUND,
    )


def draw_vertical_limit(
    axes: Axes, value: float, text: str, dashes: style.Dashes, rotation_degrees: float = 0
) -> None:
    """Draw a limit of the horizontal axis, with its text left of the line at the bottom."""
    axes.axvline(value, color=style.LIMIT, linestyle=dashes, linewidth=1.3)
    axes.annotate(
        text,
        (value, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        rotation=rotation_degrees,
        color=style.LIMIT,
    )


def positions(figure: Figure, axes: Axes, values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return where values stand in the figure, in points (1/72 inch)."""
    # The constrained layout moves the axes when the figure is drawn; before that positions are not final.
    figure.draw_without_rendering()
    return [tuple(axes.transData.transform(value) * _POINTS_PER_INCH / figure.dpi) for value in values]


def label_area(figure: Figure, axes: Axes) -> Box:
    """Return the inside of the axes, in points. To be called after `positions`, which lays the figure out."""
    inside, scale = axes.get_window_extent(), _POINTS_PER_INCH / figure.dpi
    return Box(inside.x0 * scale, inside.y0 * scale, inside.x1 * scale, inside.y1 * scale)


@dataclass(frozen=True)
class ScoreRow:
    """One task or probe set."""

    label: str
    values: Sequence[tuple[str, float, float]]
    """(model, score, standard error), as shares of 1."""


def score_chart(rows: Sequence[ScoreRow]) -> Chart:
    """Draw the scores of base, chosen and final model with one standard error to each side."""
    models = [
        model
        for model in style.MODEL_COLOURS
        if any(model == value[0] for row in rows for value in row.values)
    ]
    with style.figure(1.1 + 0.5 * len(rows)) as (figure, axes):
        for index, model in enumerate(models):
            offset = 0.2 * (index - (len(models) - 1) / 2)
            scores = [
                (height + offset, score, error)
                for height, row in enumerate(rows)
                for name, score, error in row.values
                if name == model
            ]
            axes.errorbar(
                [100 * score for _, score, _ in scores],
                [height for height, _, _ in scores],
                xerr=[100 * error for _, _, error in scores],
                fmt=style.MODEL_SHAPES[model],
                color=style.MODEL_COLOURS[model],
                markersize=6,
                capsize=3,
                linewidth=1.4,
                label=style.MODEL_NAMES[model],
            )
        _name_rows(axes, [row.label for row in rows])
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        axes.set_xlabel("score (points of 100), ± one standard error")
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3)
        svg, png = style.save(figure, "scores")
    descriptions = [
        f"{row.label}: "
        + ", ".join(
            f"{style.MODEL_NAMES.get(model, model)} {100 * score:.1f} ± {100 * error:.1f}"
            for model, score, error in row.values
        )
        for row in rows
    ]
    return Chart("scores", svg, png, "; ".join(descriptions))


def source_chart(sources: Sequence[SourceFacts], labels: Sequence[str], used: Sequence[int | None]) -> Chart:
    """Draw the tokens of each source: prepared for training, and read by the training.

    Args:
        sources: counts after preparation.
        labels: a name for each.
        used: tokens that training read from each; None before training.
    """
    has_trained = any(value is not None for value in used)
    with style.figure(1.1 + (0.55 if has_trained else 0.4) * len(sources)) as (figure, axes):
        bar_height = 0.36 if has_trained else 0.55
        offset = bar_height / 2 if has_trained else 0
        for row, (source, value) in enumerate(zip(sources, used, strict=True)):
            colour = style.DOMAIN if source.side == "domain" else style.GENERAL
            prepared = count(source.train_tokens)
            axes.barh(row - offset, source.train_tokens, height=bar_height, color=colour, alpha=0.35)
            _write_at_bar(
                axes,
                source.train_tokens,
                row - offset,
                f"{prepared} prepared" if has_trained else prepared,
            )
            if has_trained:
                axes.barh(row + offset, value or 0, height=bar_height, color=colour)
                _write_at_bar(axes, value or 0, row + offset, f"{count(value or 0)} trained on")
        _name_rows(axes, labels)
        axes.set_xlabel("tokens")
        axes.margins(x=0.3)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: count(value).replace(".0", ""))
        svg, png = style.save(figure, "data")
    descriptions = [
        f"{label}: {source.train_tokens:,} tokens" for label, source in zip(labels, sources, strict=True)
    ]
    return Chart("data", svg, png, "; ".join(descriptions))


def _write_at_bar(axes: Axes, length: float, height: float, text: str) -> None:
    axes.annotate(text, (length, height), xytext=(4, 0), textcoords="offset points", va="center")


@dataclass(frozen=True)
class StageSpan:
    """When a stage ran, in seconds since the first one began."""

    label: str
    start_seconds: float
    seconds: float
    has_failed: bool = False

    @property
    def end_seconds(self) -> float:
        """When the stage ended."""
        return self.start_seconds + self.seconds


def time_chart(spans: Sequence[StageSpan]) -> Chart:
    """Draw when each stage ran and how long it took."""
    total_seconds = max(span.end_seconds for span in spans)
    unit, unit_seconds = _time_unit(total_seconds)
    with style.figure(0.9 + 0.34 * len(spans)) as (figure, axes):
        for row, span in enumerate(spans):
            start, length = span.start_seconds / unit_seconds, span.seconds / unit_seconds
            axes.barh(
                row,
                length,
                left=start,
                height=0.6,
                color=style.LIMIT if span.has_failed else style.CHOSEN,
                alpha=0.85,
            )
            # The duration stands in a long bar, else beside it, on the side where there is space.
            if span.seconds > 0.3 * total_seconds:
                position, shift, alignment, colour = start + length / 2, 0, "center", style.PAPER
            elif span.end_seconds > 0.7 * total_seconds:
                position, shift, alignment, colour = start, -4, "right", style.INK
            else:
                position, shift, alignment, colour = start + length, 4, "left", style.INK
            axes.annotate(
                duration(span.seconds),
                (position, row),
                xytext=(shift, 0),
                textcoords="offset points",
                va="center",
                ha=alignment,
                color=colour,
            )
        _name_rows(axes, [span.label for span in spans])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{unit} since the start")
        svg, png = style.save(figure, "time")
    description = "; ".join(f"{span.label}: {duration(span.seconds)}" for span in spans)
    return Chart("time", svg, png, description)


def _time_unit(total_seconds: float) -> tuple[str, int]:
    if total_seconds >= 7200:
        return "hours", 3600
    return ("minutes", 60) if total_seconds >= 180 else ("seconds", 1)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write one name for each row, the first on top."""
    axes.set_yticks(range(len(names)), [_short_name(name) for name in names], color=style.INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _short_name(name: str) -> str:
    text = typeset(name) if name.lstrip("-").isdigit() else name
    return text if len(text) <= _MAX_NAME_CHARACTERS else f"{text[: _MAX_NAME_CHARACTERS - 1]}…"
