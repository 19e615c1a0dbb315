"""Draws the charts. Each function takes plain values and returns SVG for the page, PNG, and a description in text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dapt_contract.stages.prepare import SourceFacts
from dapt_contract.stages.pretrain import CurvePoint
from dapt_operator.number_format import duration, typeset
from dapt_operator.report import style
from dapt_operator.report.label_placement import place_labels
from dapt_operator.report.typography import count, number, percent, perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINT_LABELS = 12
_LOG_SCALE_FACTOR = 3.0
"""A base model this many times above the best checkpoint would squeeze the others together on a linear axis."""
_MAX_NAME_CHARACTERS = 34
LABEL_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
_POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Chart:
    """One chart in all its forms."""

    name: str
    svg: str
    png: bytes
    description: str
    """What the chart shows, for readers who do not see it."""


@dataclass(frozen=True)
class PerplexityPoint:
    """One model in the plane of the two perplexities."""

    label: str
    domain: float
    general: float

    @property
    def is_finite(self) -> bool:
        """Whether the point can be drawn."""
        return math.isfinite(self.domain) and math.isfinite(self.general)


@dataclass(frozen=True)
class GateLines:
    """Limits that a chart draws as lines; None where there is none."""

    max_general_increase: float | None = None
    """Largest rise of general perplexity, as a share of the base model's."""
    min_domain_decrease: float | None = None
    """Smallest fall of domain perplexity, as a share of the base model's."""
    hard_stop: float | None = None
    """Rise of general perplexity at which a run is stopped at once, as a share of the base model's."""


def perplexity_chart(
    base: PerplexityPoint,
    checkpoints: Sequence[PerplexityPoint],
    *,
    chosen: str | None,
    final: PerplexityPoint | None,
    gates: GateLines,
) -> Chart:
    """Draw domain against general perplexity: left is better in the domain, down is less forgotten.

    Args:
        base: the base model.
        checkpoints: in the order of their steps; a label is the step.
        chosen: label of the selected one.
        final: the finished model, where it is another one.
        gates: limits to draw.
    """
    drawn = [point for point in checkpoints if point.is_finite]
    with style.figure(4.1) as (figure, axes):
        axes.set_xlabel("domain perplexity (held-out text), lower is better")
        axes.set_ylabel("general perplexity, lower is better")
        axes.plot(
            [base.domain, *(point.domain for point in drawn)],
            [base.general, *(point.general for point in drawn)],
            color=style.SOFT,
            linewidth=1,
            alpha=0.5,
            zorder=2,
        )
        _scatter(axes, [point for point in drawn if point.label != chosen], _CHECKPOINT_MARKER)
        _scatter(axes, [base], _BASE_MARKER)
        for point in drawn:
            if point.label == chosen:
                _scatter(axes, [point], _CHOSEN_MARKER)
        if final is not None and final.is_finite:
            _scatter(axes, [final], _FINAL_MARKER)
        _draw_perplexity_gates(axes, base, gates)
        if drawn and base.domain > _LOG_SCALE_FACTOR * min(point.domain for point in drawn):
            _use_log_scale(axes)
        axes.margins(0.12)
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.3, columnspacing=1.2)
        _label_checkpoints(figure, axes, drawn, [base, *([final] if final else [])], chosen)
        svg, png = style.save(figure, "perplexity")
    descriptions = [
        f"base model: domain {perplexity(base.domain)}, general {perplexity(base.general)}",
        *(
            f"step {point.label}: domain {perplexity(point.domain)}, general {perplexity(point.general)}"
            for point in checkpoints
        ),
    ]
    return Chart("perplexity", svg, png, "; ".join(descriptions))


@dataclass(frozen=True)
class _Marker:
    """How points of one kind are drawn."""

    label: str
    colour: str
    size: float
    shape: str = "o"
    zorder: int = 3


_BASE_MARKER = _Marker("base model", style.BASE, size=60, zorder=4)
_CHECKPOINT_MARKER = _Marker("checkpoint", style.CHECKPOINT, size=34)
_CHOSEN_MARKER = _Marker("chosen checkpoint", style.CHOSEN, size=95, shape="s", zorder=5)
_FINAL_MARKER = _Marker("final model (fine-tuned)", style.FINAL, size=85, shape="D", zorder=5)


def _scatter(axes: Axes, points: Sequence[PerplexityPoint], marker: _Marker) -> None:
    axes.scatter(
        [point.domain for point in points],
        [point.general for point in points],
        s=marker.size,
        color=marker.colour,
        marker=marker.shape,
        zorder=marker.zorder,
        label=marker.label,
    )


def _draw_perplexity_gates(axes: Axes, base: PerplexityPoint, gates: GateLines) -> None:
    if gates.max_general_increase is not None:
        limit = base.general * (1 + gates.max_general_increase)
        axes.axhline(limit, color=style.LIMIT, linestyle=style.DASHED, linewidth=1.3)
        axes.annotate(
            f"gate: {percent(gates.max_general_increase)} = {perplexity(limit)}",
            (1, limit),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            color=style.LIMIT,
            fontsize=9,
            bbox=LABEL_BACKGROUND,
        )
    if gates.min_domain_decrease:
        target = base.domain * (1 - gates.min_domain_decrease)
        axes.axvline(target, color=style.LIMIT, linestyle=style.DOTTED, linewidth=1.3)
        axes.annotate(
            f"required: {percent(-gates.min_domain_decrease)}",
            (target, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            color=style.LIMIT,
            fontsize=9,
        )


def _use_log_scale(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlabel("domain perplexity (held-out text, log scale), lower is better")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _label_checkpoints(
    figure: Figure,
    axes: Axes,
    checkpoints: Sequence[PerplexityPoint],
    others: Sequence[PerplexityPoint],
    chosen: str | None,
) -> None:
    """Write the step next to each checkpoint; of many checkpoints, next to every few and to the chosen one."""
    interval = max(1, math.ceil(len(checkpoints) / _MAX_POINT_LABELS))
    labelled = [
        point for index, point in enumerate(checkpoints) if index % interval == 0 or point.label == chosen
    ]
    unlabelled = [point for point in checkpoints if point not in labelled]
    markers = positions(
        figure, axes, [(point.domain, point.general) for point in (*labelled, *unlabelled, *others)]
    )
    shifts = place_labels(markers, [point.label for point in labelled])
    for point, shift in zip(labelled, shifts, strict=True):
        axes.annotate(
            point.label,
            (point.domain, point.general),
            xytext=shift,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            zorder=6,
            fontweight="bold" if point.label == chosen else "normal",
        )


def positions(figure: Figure, axes: Axes, values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return where values stand in the figure, in points (1/72 inch)."""
    # The constrained layout moves the axes when the figure is drawn; before that positions are not final.
    figure.draw_without_rendering()
    return [tuple(axes.transData.transform(value) * _POINTS_PER_INCH / figure.dpi) for value in values]


def loss_chart(points: Sequence[CurvePoint], held_out: Sequence[tuple[int, float, float]]) -> Chart:
    """Draw the training loss with the held-out losses at the checkpoints, and the learning rate below.

    Args:
        points: logged steps, in order; at least one.
        held_out: (step, domain loss, general loss) in nats per token; step 0 is the base model.
    """
    steps = [point.step for point in points]
    with style.figure(4.6, 2, sharex=True, height_ratios=(3, 1)) as (figure, (upper, lower)):
        upper.plot(
            steps,
            [point.loss_nats for point in points],
            color=style.SOFT,
            linewidth=1.1,
            alpha=0.8,
            label="training batch",
        )
        sides = (("held-out domain", style.DOMAIN, "s"), ("held-out general", style.GENERAL, "^"))
        for column, (label, colour, marker) in enumerate(sides, start=1):
            finite = [row for row in held_out if math.isfinite(row[column])]
            if finite:
                upper.plot(
                    [row[0] for row in finite],
                    [row[column] for row in finite],
                    color=colour,
                    marker=marker,
                    markersize=5,
                    linewidth=1.4,
                    label=label,
                )
        upper.set_ylabel("loss (nats per token)")
        lower.plot(steps, [point.learning_rate for point in points], color=style.CHOSEN, linewidth=1.4)
        lower.set_ylabel("learning rate")
        lower.set_xlabel("optimizer step")
        lower.set_ylim(bottom=0)
        lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.2)
        svg, png = style.save(figure, "loss")
    first, last = points[0], points[-1]
    description = (
        f"training loss {number(first.loss_nats)} at step {first.step}, {number(last.loss_nats)} at step {last.step}; "
        f"learning rate at most {max(point.learning_rate for point in points):.2g}"
    )
    return Chart("loss", svg, png, description)


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
                label=model,
            )
        _name_rows(axes, [row.label for row in rows])
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        axes.set_xlabel("score (points of 100), ± one standard error")
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3)
        svg, png = style.save(figure, "scores")
    descriptions = [
        f"{row.label}: "
        + ", ".join(f"{model} {100 * score:.1f} ± {100 * error:.1f}" for model, score, error in row.values)
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
    axes.annotate(text, (length, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)


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
                position, shift, alignment, colour = start + length / 2, 0, "center", "white"
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
                fontsize=9,
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
