"""Draws what was gained and what it cost: all candidates with their Pareto front, and forgetting over the attempts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from dapt_operator.number_format import typeset
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
from dapt_operator.report.typography import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CandidateKind = Literal["checkpoint", "average", "interpolation"]

_KIND_SHAPES: Final[dict[CandidateKind, str]] = {"checkpoint": "o", "average": "^", "interpolation": "D"}
_MAX_POINT_LABELS: Final = 14
_MAX_SHOWN_FACTOR: Final = 3.0
"""A candidate that forgets more than this many times the limit would squeeze the others together."""
_HARD_STOP_SHOWN_FACTOR: Final = 1.3
"""A hard stop more than this many times above the highest reading would leave the chart mostly empty."""


@dataclass(frozen=True)
class CandidatePoint:
    """One candidate in the plane of gain and forgetting."""

    id: str
    attempt: int
    kind: CandidateKind
    forgetting: float
    """General perplexity divided by the base model's, minus 1."""
    gain: float
    passes: bool | None

    @property
    def position(self) -> tuple[float, float]:
        """Forgetting in percent, and gain."""
        return 100 * self.forgetting, self.gain


def pareto_front(candidates: Iterable[CandidatePoint]) -> tuple[CandidatePoint, ...]:
    """Return the candidates that no other beats on both sides (Pareto), by rising forgetting."""
    best_gain, front = -math.inf, []
    for candidate in sorted(candidates, key=lambda candidate: (candidate.forgetting, -candidate.gain)):
        if candidate.gain > best_gain:
            best_gain = candidate.gain
            front.append(candidate)
    return tuple(front)


def tradeoff_chart(candidates: Sequence[CandidatePoint], *, chosen: str | None, gates: GateLines) -> Chart:
    """Draw gain against forgetting: up is more gained, left is less forgotten.

    Args:
        candidates: all that were measured.
        chosen: id of the selected one.
        gates: limits to draw.
    """
    finite = [point for point in candidates if math.isfinite(point.forgetting) and math.isfinite(point.gain)]
    limit = gates.max_general_increase
    shown = _without_far_points(finite, limit, chosen)
    front = pareto_front(shown)
    with style.figure(4.3) as (figure, axes):
        axes.set_xlabel("forgetting: general perplexity over the base model's (%)")
        axes.set_ylabel("gain in the domain, by perplexity")
        axes.scatter([0], [0], s=60, color=style.BASE, zorder=4, label="base model")
        axes.plot(
            [100 * point.forgetting for point in front],
            [point.gain for point in front],
            color=style.INK,
            linewidth=1.2,
            alpha=0.45,
            zorder=2,
            label="front",
        )
        _draw_candidates(axes, shown, chosen)
        if limit is not None:
            draw_vertical_limit(
                axes, 100 * limit, f"gate: {percent(limit)}", style.DASHED, rotation_degrees=90
            )
        axes.margins(0.12)
        figure.legend(loc="outside upper left", ncols=2, handletextpad=0.3, columnspacing=1.2)
        _label_front(figure, axes, shown, front, chosen)
        svg, png = style.save(figure, "trade")
    descriptions = [
        f"{point.id}: forgetting {percent(point.forgetting)}, gain {typeset(f'{point.gain:.3f}')}"
        for point in finite
    ]
    num_left_out = len(candidates) - len(shown)
    if num_left_out:
        descriptions.append(f"{num_left_out} far beyond the gate are not drawn")
    return Chart("trade", svg, png, "; ".join(descriptions))


def _without_far_points(
    candidates: Sequence[CandidatePoint], limit: float | None, chosen: str | None
) -> list[CandidatePoint]:
    """Return the candidates without those far beyond the limit, where at least two are left."""
    if limit is None:
        return list(candidates)
    near = [
        point for point in candidates if point.forgetting <= _MAX_SHOWN_FACTOR * limit or point.id == chosen
    ]
    return near if len(near) >= 2 else list(candidates)


def _draw_candidates(axes: Axes, candidates: Sequence[CandidatePoint], chosen: str | None) -> None:
    has_several_attempts = len({point.attempt for point in candidates}) > 1
    for kind, attempt in dict.fromkeys((point.kind, point.attempt) for point in candidates):
        group = [
            point
            for point in candidates
            if (point.kind, point.attempt) == (kind, attempt) and point.id != chosen
        ]
        if group:
            colour = _attempt_colour(attempt)
            axes.scatter(
                [100 * point.forgetting for point in group],
                [point.gain for point in group],
                s=34,
                marker=_KIND_SHAPES[kind],
                zorder=3,
                label=f"{kind}, attempt {attempt}" if has_several_attempts else kind,
                facecolors="none" if kind == "interpolation" else colour,
                edgecolors=colour,
            )
    for point in candidates:
        if point.id == chosen:
            axes.scatter(
                *point.position,
                s=130,
                marker="s",
                zorder=5,
                facecolors="none",
                edgecolors=style.CHOSEN,
                linewidths=2.2,
                label=f"chosen: {point.id}",
            )
            axes.scatter(*point.position, s=34, zorder=5, marker=_KIND_SHAPES[point.kind], color=style.CHOSEN)


def _attempt_colour(attempt: int) -> str:
    return style.ATTEMPTS[(attempt - 1) % len(style.ATTEMPTS)]


def _label_front(
    figure: Figure,
    axes: Axes,
    candidates: Sequence[CandidatePoint],
    front: Sequence[CandidatePoint],
    chosen: str | None,
) -> None:
    """Write the names of the last candidates of the front; the chosen one's stands in the legend."""
    labelled = [point for point in front if point.id != chosen][-_MAX_POINT_LABELS:]
    unlabelled = [point for point in candidates if point not in labelled]
    markers = positions(figure, axes, [point.position for point in (*labelled, *unlabelled)])
    names = [_short_id(point.id) for point in labelled]
    for point, name, shift in zip(
        labelled, names, place_labels(markers, names, label_area(figure, axes)), strict=True
    ):
        axes.annotate(
            name,
            point.position,
            xytext=shift,
            textcoords="offset points",
            ha="center",
            va="center",
            zorder=6,
        )


def _short_id(candidate_id: str) -> str:
    """Return `s4560-i0.8` for `a1-s4560-i0.8`: the colour shows which attempt it is."""
    return candidate_id.partition("-")[2] or candidate_id


@dataclass(frozen=True)
class AttemptPath:
    """Forgetting at the checkpoints of one attempt, over the steps since the base model."""

    number: int
    start_step: int
    """Steps that the starting checkpoint had; 0 for the base model."""
    start_forgetting: float
    readings: Sequence[tuple[int, float]]
    """(step, forgetting); steps count from the base model on."""
    ended_by: str

    @property
    def was_stopped(self) -> bool:
        """Whether it ended before its budget was used up."""
        return self.ended_by not in ("", "Completed", "BudgetReached")


def attempts_chart(paths: Sequence[AttemptPath], gates: GateLines) -> Chart:
    """Draw forgetting over the steps of every attempt, with the gate's line and the hard stop.

    Args:
        paths: in the order of the attempts.
        gates: limits to draw.
    """
    # A diverged reading would squeeze all others together: it is drawn at the top, with its value and an arrow.
    top = _MAX_SHOWN_FACTOR * max(gates.hard_stop or 0.0, gates.max_general_increase or 0.0) or math.inf
    shown = {path.number: _shown_readings(path, top) for path in paths}
    highest = max((share for readings in shown.values() for _, share in readings), default=0)
    with style.figure(3.7) as (figure, axes):
        axes.set_xlabel("optimizer steps from the base model on")
        axes.set_ylabel("forgetting (%)")
        for path in paths:
            _draw_attempt(axes, path, shown[path.number])
        if gates.max_general_increase is not None:
            limit = gates.max_general_increase
            draw_horizontal_limit(axes, 100 * limit, f"gate: {percent(limit)}", style.DASHED)
        if gates.hard_stop is not None and gates.hard_stop <= _HARD_STOP_SHOWN_FACTOR * highest:
            text = f"hard stop: {percent(gates.hard_stop)}"
            draw_horizontal_limit(axes, 100 * gates.hard_stop, text, style.DOTTED)
        axes.margins(0.08)
        axes.set_xlim(left=0)
        figure.legend(loc="outside upper left", ncols=3, handletextpad=0.4, columnspacing=1.2)
        svg, png = style.save(figure, "attempts")
    descriptions = [
        f"attempt {path.number} from step {path.start_step}: "
        + ", ".join(f"{percent(share)} at step {step}" for step, share in path.readings)
        + (f"; ended by {path.ended_by}" if path.ended_by else "")
        for path in paths
    ]
    return Chart("attempts", svg, png, ". ".join(descriptions))


def _shown_readings(path: AttemptPath, top: float) -> list[tuple[int, float]]:
    return [(step, min(share, top)) for step, share in path.readings if not math.isnan(share)]


def _draw_attempt(axes: Axes, path: AttemptPath, shown: Sequence[tuple[int, float]]) -> None:
    steps = [path.start_step, *(step for step, _ in shown)]
    percents = [100 * path.start_forgetting, *(100 * share for _, share in shown)]
    axes.plot(
        steps,
        percents,
        color=_attempt_colour(path.number),
        marker="o",
        markersize=4.5,
        linewidth=1.5,
        label=f"attempt {path.number}" + (": stopped" if path.was_stopped else ""),
    )
    if path.was_stopped and shown:
        axes.scatter([steps[-1]], [percents[-1]], s=90, marker="X", color=style.LIMIT, zorder=5)
    shares = dict(shown)
    for step, share in path.readings:
        if share > shares.get(step, math.inf):
            axes.annotate(
                f"{percent(share)} ↑",
                (step, 100 * shares[step]),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
            )
