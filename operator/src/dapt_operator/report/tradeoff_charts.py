"""Two pictures of what was won and what it cost: all candidates with their front, and forgetting over the attempts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dapt_operator.number_format import typeset
from dapt_operator.report import style
from dapt_operator.report.charts import Chart
from dapt_operator.report.label_placement import place
from dapt_operator.report.typography import percent

CandidateKind = Literal["checkpoint", "average", "interpolation"]
KIND_SHAPES: dict[CandidateKind, str] = {"checkpoint": "o", "average": "^", "interpolation": "D"}
ATTEMPT_COLOURS = ("#5aa9d6", "#e69f00", "#009e73", "#cc79a7", "#8c6bb1")
"""Of attempts 1 to 5; later ones begin anew."""
_MAX_LABELS = 14
_FAR = 3.0
"""Where the worst candidate forgets that many times more than the gate allows, it would press the rest together."""


@dataclass(frozen=True)
class Offer:
    """One candidate: what it won and what it forgot."""

    id: str
    attempt: int
    kind: CandidateKind
    forgetting: float
    """General perplexity over the base model's, minus 1."""
    gain: float
    passes: bool | None


def front(offers: Iterable[Offer]) -> tuple[Offer, ...]:
    """Those that no other beats on both sides (Pareto), by rising forgetting."""
    best, found = -math.inf, []
    for one in sorted(offers, key=lambda one: (one.forgetting, -one.gain)):
        if one.gain > best:
            best = one.gain
            found.append(one)
    return tuple(found)


def trade(offers: Sequence[Offer], *, chosen: str | None, limit: float | None) -> Chart:
    """Gain against forgetting: up is more won, left is less forgotten.

    Args:
        offers: all candidates that were measured.
        chosen: id of the selected one.
        limit: the gate's largest forgetting, as a share.
    """
    drawn = [one for one in offers if math.isfinite(one.forgetting) and math.isfinite(one.gain)]
    shown = _near(drawn, limit, chosen)
    line = front(shown)
    with style.figure(4.3) as (made, axes):
        axes.set_xlabel("forgetting: general perplexity over the base model's (%)")
        axes.set_ylabel("gain in the domain")
        axes.scatter([0], [0], s=60, color=style.BASE, zorder=4, label="base model")
        axes.plot(
            [100 * one.forgetting for one in line], [one.gain for one in line],
            color=style.INK, linewidth=1.2, alpha=0.45, zorder=2, label="front",
        )  # fmt: skip
        for kind, attempt in dict.fromkeys((one.kind, one.attempt) for one in shown):
            mine = [one for one in shown if (one.kind, one.attempt) == (kind, attempt) and one.id != chosen]
            if mine:
                axes.scatter(
                    [100 * one.forgetting for one in mine], [one.gain for one in mine],
                    s=34, marker=KIND_SHAPES[kind], zorder=3, label=_legend(kind, attempt, shown),
                    facecolors="none" if kind == "interpolation" else colour(attempt), edgecolors=colour(attempt),
                )  # fmt: skip
        taken = next((one for one in shown if one.id == chosen), None)
        if taken is not None:
            axes.scatter(
                [100 * taken.forgetting], [taken.gain], s=130, marker="s", zorder=5,
                facecolors="none", edgecolors=style.CHOSEN, linewidths=2.2, label=f"chosen: {taken.id}",
            )  # fmt: skip
            axes.scatter(
                [100 * taken.forgetting], [taken.gain], s=34, zorder=5,
                marker=KIND_SHAPES[taken.kind], color=style.CHOSEN,
            )  # fmt: skip
        if limit is not None:
            axes.axvline(100 * limit, color=style.LIMIT, linestyle=(0, (5, 3)), linewidth=1.3)
            axes.annotate(
                f"gate: {percent(limit)}", (100 * limit, 0.02), xycoords=("data", "axes fraction"),
                xytext=(-4, 0), textcoords="offset points", ha="right", rotation=90, color=style.LIMIT, fontsize=9,
            )  # fmt: skip
        axes.margins(0.12)
        made.legend(loc="outside upper left", ncols=2, handletextpad=0.3, columnspacing=1.2)
        _label(made, axes, shown, line, chosen)
        svg, png = style.save(made, "trade")
    left_out = len(offers) - len(shown)
    told = [
        f"{one.id}: forgetting {percent(one.forgetting)}, gain {typeset(f'{one.gain:.3f}')}" for one in drawn
    ]
    if left_out:
        told.append(f"{left_out} far beyond the gate are not drawn")
    return Chart("trade", svg, png, "; ".join(told))


def colour(attempt: int) -> str:
    """Of an attempt's marks."""
    return ATTEMPT_COLOURS[(attempt - 1) % len(ATTEMPT_COLOURS)]


def _near(offers: Sequence[Offer], limit: float | None, chosen: str | None) -> list[Offer]:
    """Without those so far off that they would press the others together, where enough are left."""
    if limit is None:
        return list(offers)
    near = [one for one in offers if one.forgetting <= _FAR * limit or one.id == chosen]
    return near if len(near) >= 2 else list(offers)


def _legend(kind: CandidateKind, attempt: int, offers: Sequence[Offer]) -> str:
    several = len({one.attempt for one in offers}) > 1
    return f"{kind}, attempt {attempt}" if several else kind


def _label(made: Any, axes: Any, offers: Sequence[Offer], line: Sequence[Offer], chosen: str | None) -> None:
    """Name the front and the chosen one, as many as there is room for."""
    named = [one for one in line if one.id != chosen][-_MAX_LABELS:]
    rest = [one for one in offers if one not in named]
    made.draw_without_rendering()  # places are known once the layout is
    places = [
        tuple(axes.transData.transform((100 * one.forgetting, one.gain)) * 72 / made.dpi)
        for one in (*named, *rest)
    ]
    for one, shift in zip(named, place(places, [_short(one.id) for one in named]), strict=True):
        axes.annotate(
            _short(one.id), (100 * one.forgetting, one.gain), xytext=shift, textcoords="offset points",
            ha="center", va="center", fontsize=8, zorder=6,
        )  # fmt: skip


def _short(name: str) -> str:
    """`s4560-i0.8` for `a1-s4560-i0.8`: the colour says which attempt."""
    return name.partition("-")[2] or name


@dataclass(frozen=True)
class AttemptPath:
    """One attempt: forgetting at its checkpoints, on the axis of the steps that its models have behind them."""

    number: int
    start_step: int
    """0 for the base model."""
    start_forgetting: float
    readings: Sequence[tuple[int, float]]
    """(step, forgetting); steps count from the base model on."""
    ended_by: str


def attempts_path(paths: Sequence[AttemptPath], *, limit: float | None, hard_stop: float | None) -> Chart:
    """Forgetting over the steps of every attempt, with the gate's line and the hard stop.

    Args:
        paths: in the order of the attempts.
        limit: the gate's largest forgetting, as a share.
        hard_stop: the share past which a run is stopped at once.
    """
    top = _FAR * max(hard_stop or 0.0, limit or 0.0) or math.inf
    highest = max(
        (min(share, top) for path in paths for _, share in path.readings if not math.isnan(share)), default=0
    )
    with style.figure(3.7) as (made, axes):
        axes.set_xlabel("optimizer steps from the base model on")
        axes.set_ylabel("forgetting (%)")
        for path in paths:
            known = [(step, share) for step, share in path.readings if not math.isnan(share)]
            xs = [path.start_step, *(step for step, _ in known)]
            ys = [100 * path.start_forgetting, *(100 * min(share, top) for _, share in known)]
            stopped = path.ended_by not in ("", "Completed", "BudgetReached")
            axes.plot(
                xs, ys, color=colour(path.number), marker="o", markersize=4.5, linewidth=1.5,
                label=f"attempt {path.number}" + (": stopped" if stopped else ""),
            )  # fmt: skip
            if stopped and known:
                axes.scatter([xs[-1]], [ys[-1]], s=90, marker="X", color=style.LIMIT, zorder=5)
            for step, share in known:
                if share > top:
                    axes.annotate(
                        f"{percent(share)} ↑", (step, 100 * top), xytext=(8, 0), textcoords="offset points",
                        va="center", fontsize=9,
                    )  # fmt: skip
        lines = [("gate", limit, (0, (5, 3))), ("hard stop", hard_stop, (0, (1, 2)))]
        for name, bound, dashes in lines:
            if bound is None or (name == "hard stop" and bound > 1.3 * highest):
                continue
            axes.axhline(100 * bound, color=style.LIMIT, linestyle=dashes, linewidth=1.3)
            axes.annotate(
                f"{name}: {percent(bound)}", (1, 100 * bound), xycoords=("axes fraction", "data"),
                xytext=(-2, 4), textcoords="offset points", ha="right", color=style.LIMIT, fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
            )  # fmt: skip
        axes.margins(0.08)
        axes.set_xlim(left=0)
        made.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.2)
        svg, png = style.save(made, "attempts")
    told = [
        f"attempt {path.number} from step {path.start_step}: "
        + ", ".join(f"{percent(share)} at step {step}" for step, share in path.readings)
        + (f"; ended by {path.ended_by}" if path.ended_by else "")
        for path in paths
    ]
    return Chart("attempts", svg, png, ". ".join(told))
