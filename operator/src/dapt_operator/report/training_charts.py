"""Draws how a model learned and forgot: the plane of the two perplexities, and the losses over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from dapt_contract.stages.pretrain import CurvePoint
from dapt_operator.report import style
from dapt_operator.report.charts import (
    Chart,
    GateLines,
    draw_horizontal_limit,
    draw_vertical_limit,
    label_area,
    positions,
)
from dapt_operator.report.label_placement import place_labels
from dapt_operator.report.typography import number, percent, perplexity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINT_LABELS: Final = 12
_LOG_SCALE_FACTOR: Final = 3.0
"""A base model this many times above the best checkpoint would squeeze the others together on a linear axis."""


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
        final: the finished model, where it is another one; its label says by what it was tuned.
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
            _scatter(axes, [final], replace(_FINAL_MARKER, label=f"final model ({final.label})"))
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
_FINAL_MARKER = _Marker("final model", style.FINAL, size=85, shape="D", zorder=5)


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
        text = f"gate: {percent(gates.max_general_increase)} = {perplexity(limit)}"
        draw_horizontal_limit(axes, limit, text, style.DASHED)
    if gates.min_domain_decrease:
        target = base.domain * (1 - gates.min_domain_decrease)
        draw_vertical_limit(axes, target, f"required: {percent(-gates.min_domain_decrease)}", style.DOTTED)


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
    shifts = place_labels(markers, [point.label for point in labelled], label_area(figure, axes))
    for point, shift in zip(labelled, shifts, strict=True):
        axes.annotate(
            point.label,
            (point.domain, point.general),
            xytext=shift,
            textcoords="offset points",
            ha="center",
            va="center",
            zorder=6,
            fontweight="bold" if point.label == chosen else "normal",
        )


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
        _mark_loss(upper, points)
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
    return Chart("loss", svg, png, description + "".join(f"; {text}" for text in _marks_in_words(points)))


def _mark_loss(axes: Axes, points: Sequence[CurvePoint]) -> None:
    """Ring the spikes of the loss, and cross the steps that were skipped at the lower edge: they have no loss."""
    spikes = [point for point in points if point.spike and math.isfinite(point.loss_nats)]
    if spikes:
        axes.plot(
            [point.step for point in spikes],
            [point.loss_nats for point in spikes],
            color=style.LIMIT,
            marker="o",
            markersize=8,
            markerfacecolor="none",
            linestyle="none",
            label="spike",
        )
    skipped = [point.step for point in points if point.skipped]
    if skipped:
        axes.plot(
            skipped,
            [0.03] * len(skipped),
            transform=axes.get_xaxis_transform(),
            color=style.LIMIT,
            marker="x",
            markersize=5,
            linestyle="none",
            label="skipped step",
        )


def _marks_in_words(points: Sequence[CurvePoint]) -> list[str]:
    counts = (
        ("spike", "spikes", sum(point.spike for point in points)),
        ("skipped step", "skipped steps", sum(point.skipped for point in points)),
    )
    return [f"{count} {one if count == 1 else many}" for one, many, count in counts if count]
