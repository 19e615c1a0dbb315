"""The pictures: each takes plain values and gives SVG for the page, PNG, and what a reader who sees none is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dapt_contract.stages.prepare import SourceFacts
from dapt_contract.stages.pretrain import CurvePoint
from dapt_operator.number_format import duration, typeset
from dapt_operator.report import style
from dapt_operator.report.label_placement import place
from dapt_operator.report.typography import count, number, percent, perplexity

_MAX_LABELS = 12
_LOG_FROM = 3.0
"""A base model that many times above the best checkpoint would press the others together on a linear axis."""
_SHOWN_NAME = 34


@dataclass(frozen=True)
class Chart:
    """One picture."""

    name: str
    svg: str
    png: bytes
    description: str


@dataclass(frozen=True)
class Point:
    """One model in the plane of the two perplexities."""

    label: str
    domain: float
    general: float


def frontier(
    base: Point,
    checkpoints: Sequence[Point],
    *,
    chosen: str | None,
    final: Point | None,
    max_increase: float | None,
    min_decrease: float | None,
) -> Chart:
    """Domain against general perplexity: left is better in the domain, down is less forgotten.

    Args:
        base: the base model.
        checkpoints: in the order of their steps; a label is the step.
        chosen: label of the selected one.
        final: the finished model, where it is another one.
        max_increase: the gate's limit, as a share over the base model's general perplexity.
        min_decrease: asked fall of the domain perplexity, as a share.
    """
    drawn = [point for point in checkpoints if math.isfinite(point.domain) and math.isfinite(point.general)]
    with style.figure(4.1) as (made, axes):
        axes.set_xlabel("domain perplexity (held-out text), lower is better")
        axes.set_ylabel("general perplexity, lower is better")
        axes.plot(
            [base.domain, *(p.domain for p in drawn)],
            [base.general, *(p.general for p in drawn)],
            color=style.SOFT, linewidth=1, alpha=0.5, zorder=2,
        )  # fmt: skip
        plain = [point for point in drawn if point.label != chosen]
        axes.scatter(
            [p.domain for p in plain],
            [p.general for p in plain],
            s=34,
            color="#5aa9d6",
            zorder=3,
            label="checkpoint",
        )
        axes.scatter(
            [base.domain], [base.general], s=60, color=style.BASE, marker="o", zorder=4, label="base model"
        )
        for point in drawn:
            if point.label == chosen:
                axes.scatter(
                    [point.domain],
                    [point.general],
                    s=95,
                    color=style.CHOSEN,
                    marker="s",
                    zorder=5,
                    label="chosen checkpoint",
                )
        if final is not None and math.isfinite(final.domain) and math.isfinite(final.general):
            axes.scatter(
                [final.domain],
                [final.general],
                s=85,
                color=style.FINAL,
                marker="D",
                zorder=5,
                label="final model (fine-tuned)",
            )
        if max_increase is not None:
            limit = base.general * (1 + max_increase)
            axes.axhline(limit, color=style.LIMIT, linestyle=(0, (5, 3)), linewidth=1.3)
            axes.annotate(
                f"gate: {percent(max_increase)} = {perplexity(limit)}", (1, limit), xycoords=("axes fraction", "data"),
                xytext=(-2, 4), textcoords="offset points", ha="right", color=style.LIMIT, fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
            )  # fmt: skip
        if min_decrease:
            asked = base.domain * (1 - min_decrease)
            axes.axvline(asked, color=style.LIMIT, linestyle=(0, (1, 2)), linewidth=1.3)
            axes.annotate(
                f"asked: {percent(-min_decrease)}", (asked, 0.02), xycoords=("data", "axes fraction"),
                xytext=(-4, 0), textcoords="offset points", ha="right", color=style.LIMIT, fontsize=9,
            )  # fmt: skip
        if drawn and base.domain > _LOG_FROM * min(point.domain for point in drawn):
            from matplotlib.ticker import LogLocator, NullLocator

            axes.set_xscale("log")
            axes.set_xlabel("domain perplexity (held-out text, log scale), lower is better")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(0.12)
        made.legend(loc="outside upper left", ncols=2, handletextpad=0.3, columnspacing=1.2)
        _label(made, axes, drawn, [base, *([final] if final else [])], chosen)
        svg, png = style.save(made, "perplexity")
    told = [
        f"step {p.label}: domain {perplexity(p.domain)}, general {perplexity(p.general)}" for p in checkpoints
    ]
    head = f"base model: domain {perplexity(base.domain)}, general {perplexity(base.general)}"
    return Chart("perplexity", svg, png, "; ".join([head, *told]))


def _label(
    made: Any, axes: Any, points: Sequence[Point], others: Sequence[Point], chosen: str | None
) -> None:
    """Write each point's label where there is room; of many points, some."""
    every = max(1, math.ceil(len(points) / _MAX_LABELS))
    named = [point for index, point in enumerate(points) if index % every == 0 or point.label == chosen]
    rest = [point for point in points if point not in named]
    made.draw_without_rendering()  # places are known once the layout is
    places = [
        tuple(axes.transData.transform((p.domain, p.general)) * 72 / made.dpi)
        for p in (*named, *rest, *others)
    ]
    for point, shift in zip(named, place(places, [point.label for point in named]), strict=True):
        axes.annotate(
            point.label, (point.domain, point.general), xytext=shift, textcoords="offset points",
            ha="center", va="center", fontsize=9, zorder=6,
            fontweight="bold" if point.label == chosen else "normal",
        )  # fmt: skip


def curve(points: Sequence[CurvePoint], held_out: Sequence[tuple[int, float, float]]) -> Chart:
    """Training loss with the held-out losses at the checkpoints, and the learning rate below.

    Args:
        points: logged steps, in order; at least one.
        held_out: (step, domain loss, general loss) in nats a token; step 0 is the base model.
    """
    steps = [point.step for point in points]
    with style.figure(4.6, 2, sharex=True, height_ratios=(3, 1)) as (made, (upper, lower)):
        upper.plot(
            steps,
            [p.loss_nats for p in points],
            color=style.SOFT,
            linewidth=1.1,
            alpha=0.8,
            label="training batch",
        )
        for column, (label, colour, shape) in enumerate(
            (("held-out domain", style.DOMAIN, "s"), ("held-out general", style.GENERAL, "^")), start=1
        ):
            known = [row for row in held_out if math.isfinite(row[column])]
            if known:
                upper.plot(
                    [row[0] for row in known], [row[column] for row in known],
                    color=colour, marker=shape, markersize=5, linewidth=1.4, label=label,
                )  # fmt: skip
        upper.set_ylabel("loss (nats a token)")
        lower.plot(steps, [p.learning_rate for p in points], color=style.CHOSEN, linewidth=1.4)
        lower.set_ylabel("learning rate")
        lower.set_xlabel("optimizer step")
        lower.set_ylim(bottom=0)
        lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        made.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.2)
        svg, png = style.save(made, "loss")
    first, last = points[0], points[-1]
    return Chart(
        "loss", svg, png,
        f"training loss {number(first.loss_nats)} at step {first.step}, {number(last.loss_nats)} at step {last.step}; "
        f"learning rate at most {max(p.learning_rate for p in points):.2g}",
    )  # fmt: skip


@dataclass(frozen=True)
class ScoreRow:
    """One task or probe set: (model, score, standard error), shares of 1."""

    label: str
    values: Sequence[tuple[str, float, float]]


def scores(rows: Sequence[ScoreRow]) -> Chart:
    """Scores of base, chosen and final with an interval of one standard error to each side."""
    present = [
        name for name in style.MODEL_COLOURS if any(name == value[0] for row in rows for value in row.values)
    ]
    with style.figure(1.1 + 0.5 * len(rows)) as (made, axes):
        for shift, name in enumerate(present):
            drawn = [
                (place + 0.2 * (shift - (len(present) - 1) / 2), score, error)
                for place, row in enumerate(rows)
                for model, score, error in row.values
                if model == name
            ]
            axes.errorbar(
                [100 * score for _, score, _ in drawn], [place for place, _, _ in drawn],
                xerr=[100 * error for _, _, error in drawn], fmt=style.MODEL_SHAPES[name],
                color=style.MODEL_COLOURS[name], markersize=6, capsize=3, linewidth=1.4, label=name,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows], color=style.INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        axes.set_xlabel("score (points of 100), ± one standard error")
        axes.grid(axis="y", visible=False)
        made.legend(loc="outside upper left", ncols=3, handletextpad=0.3)
        svg, png = style.save(made, "scores")
    told = [
        f"{row.label}: "
        + ", ".join(f"{name} {100 * score:.1f} ± {100 * error:.1f}" for name, score, error in row.values)
        for row in rows
    ]
    return Chart("scores", svg, png, "; ".join(told))


def composition(sources: Sequence[SourceFacts], labels: Sequence[str], used: Sequence[int | None]) -> Chart:
    """Tokens of each source: prepared for training, and read by the training.

    Args:
        sources: counts after preparation.
        labels: a name for each.
        used: tokens that training read from each; None before training.
    """
    trained = any(value is not None for value in used)
    with style.figure(1.1 + (0.55 if trained else 0.4) * len(sources)) as (made, axes):
        height = 0.36 if trained else 0.55
        for place, (source, value) in enumerate(zip(sources, used, strict=True)):
            colour = style.DOMAIN if source.side == "domain" else style.GENERAL
            offset = -height / 2 if trained else 0
            axes.barh(place + offset, source.train_tokens, height=height, color=colour, alpha=0.35)
            axes.annotate(
                f"{count(source.train_tokens)} prepared" if trained else count(source.train_tokens),
                (source.train_tokens, place + offset), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
            if trained:
                axes.barh(place - offset, value or 0, height=height, color=colour)
                axes.annotate(
                    f"{count(value or 0)} trained on", (value or 0, place - offset), xytext=(4, 0),
                    textcoords="offset points", va="center", fontsize=9,
                )  # fmt: skip
        axes.set_yticks(range(len(sources)), [_short(label) for label in labels], color=style.INK)
        axes.set_ylim(len(sources) - 0.5, -0.5)
        axes.set_xlabel("tokens")
        axes.margins(x=0.3)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: count(value).replace(".0", ""))
        axes.grid(axis="y", visible=False)
        svg, png = style.save(made, "data")
    told = [f"{label}: {source.train_tokens:,} tokens" for label, source in zip(labels, sources, strict=True)]
    return Chart("data", svg, png, "; ".join(told))


@dataclass(frozen=True)
class Span:
    """One stage on the clock, in seconds since the first one began."""

    label: str
    start_seconds: float
    seconds: float
    failed: bool = False


def timeline(spans: Sequence[Span]) -> Chart:
    """When each stage ran and how long it took."""
    whole = max(span.start_seconds + span.seconds for span in spans)
    unit, size = ("hours", 3600) if whole >= 7200 else ("minutes", 60) if whole >= 180 else ("seconds", 1)
    with style.figure(0.9 + 0.34 * len(spans)) as (made, axes):
        for place, span in enumerate(spans):
            start, length = span.start_seconds / size, span.seconds / size
            axes.barh(
                place,
                length,
                left=start,
                height=0.6,
                color=style.LIMIT if span.failed else style.CHOSEN,
                alpha=0.85,
            )
            inside = span.seconds > 0.3 * whole
            late = span.start_seconds + span.seconds > 0.7 * whole
            at = start + length / 2 if inside else start if late else start + length
            axes.annotate(
                duration(span.seconds), (at, place), xytext=(0 if inside else -4 if late else 4, 0),
                textcoords="offset points", va="center", ha="center" if inside else "right" if late else "left",
                color="white" if inside else style.INK, fontsize=9,
            )  # fmt: skip
        axes.set_yticks(range(len(spans)), [_short(span.label) for span in spans], color=style.INK)
        axes.set_ylim(len(spans) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{unit} since the start")
        axes.grid(axis="y", visible=False)
        svg, png = style.save(made, "time")
    return Chart("time", svg, png, "; ".join(f"{span.label}: {duration(span.seconds)}" for span in spans))


def _short(label: str) -> str:
    shown = typeset(label) if label.lstrip("-").isdigit() else label
    return shown if len(shown) <= _SHOWN_NAME else f"{shown[: _SHOWN_NAME - 1]}…"
