"""Weights between the base and an adapted model: what they add to the front of gain and forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from science.experiments.common import (
    CLEAR,
    INTERPOLATED,
    SEEDS,
    Experiment,
    Outcome,
    Records,
    Sample,
    Table,
    Verdict,
    above_zero,
    forgetting_at,
    open_verdict,
    over,
    strong_run,
)
from science.experiments.schedule import LOW, PEAK, cosine
from science.plots import Series, plane
from science.settings import Adaptation

REPLAYS = (0.0, 0.05, 0.15, 0.30)
RUNS = [strong_run(share) for share in REPLAYS]
MUCH_REPLAY = strong_run(0.50)
WORST_FORGETTING_NATS = 0.7
"""Corner of the hypervolume: no gain, and more forgetting than the pilot's run without replay (0.56)."""
LEAST_MORE_VOLUME = 0.05
"""More points can never make a front smaller, so a gain that is merely above zero would prove nothing."""
LOW_RATE = cosine(LOW)

Point = tuple[float, float]


def judge(records: Records) -> Outcome:
    """The whole front; interpolation against a lower rate, and with much replay against still more of it."""
    return Outcome((_front(records), _against_rate(records), _against_replay(records)), (_table(records),))


def front(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other one beats on gain and on forgetting."""
    return [
        place
        for place, (gain, forgetting) in enumerate(points)
        if not any(g >= gain and f <= forgetting and (g, f) != (gain, forgetting) for g, f in points)
    ]


def volume(points: Sequence[Point], worst: float = WORST_FORGETTING_NATS) -> float:
    """Area that the points dominate, between no gain and the worst forgetting (Zitzler and Thiele 1998)."""
    area, highest = 0.0, 0.0
    for gain, forgetting in sorted(points, key=lambda point: point[1]):
        if gain > highest and forgetting < worst:
            area += (gain - highest) * (worst - forgetting)
            highest = gain
    return area


def _models(records: Records, run: Mapping[str, Any], half: str, *, blended: bool) -> list[Point]:
    models = [run["readings"][-1], *(run["blends"] if blended else ())]
    return [records.point(run, losses, half) for losses in models]


def volumes(records: Records, seed: int) -> tuple[float, float] | None:
    """(without, with) interpolations: the front is found on half A and its volume taken on half B."""
    runs = [records.run(replace(run, seed=seed)) for run in RUNS]
    if any(run is None for run in runs):
        return None

    def of(blended: bool) -> float:
        on_a = [p for run in runs if run for p in _models(records, run, "a", blended=blended)]
        on_b = [p for run in runs if run for p in _models(records, run, "b", blended=blended)]
        return volume([on_b[place] for place in front(on_a)])

    return of(False), of(True)


def _front(records: Records) -> Verdict:
    name = "interpolation.front"
    missing = open_verdict(name, records, over(SEEDS, RUNS))
    if missing:
        return missing
    pairs = [pair for pair in (volumes(records, seed) for seed in SEEDS) if pair]
    without, more = Sample(tuple(a for a, _ in pairs)), Sample(tuple(b - a for a, b in pairs))
    share = more.mean / without.mean
    return Verdict(
        name,
        share >= LEAST_MORE_VOLUME and above_zero(more) > CLEAR,
        f"interpolations add {share:.1%} to the front's hypervolume of {without.mean:.3f} nats squared (asked: "
        f"{LEAST_MORE_VOLUME:.0%}), {above_zero(more):.1f} deviations of the difference above zero",
    )


def saved(records: Records, mixed: Adaptation, trained: Adaptation) -> Sample:
    """Forgetting of a trained run above that of another run's interpolations at the same gain, by seed.

    The interpolations' line goes from the base model over the measured shares to the adapted model.
    """
    values = []
    for seed in SEEDS:
        one, other = (records.run(replace(run, seed=seed)) for run in (mixed, trained))
        if one is None or other is None:
            continue
        line = [(0.0, 0.0), *_models(records, one, "b", blended=True)]
        at = forgetting_at(line, records.gain(other))
        if at is not None:
            values.append(records.forgetting(other) - at)
    return Sample(tuple(values))


def _beats(records: Records, name: str, mixed: Adaptation, trained: Adaptation, told: str) -> Verdict:
    missing = open_verdict(name, records, over(SEEDS, [mixed, trained]))
    if missing:
        return missing
    more = saved(records, mixed, trained)
    if len(more) < len(SEEDS):
        return Verdict(
            name, False, f"{told} has a gain that the interpolations do not reach: nothing to compare"
        )
    return Verdict(
        name,
        above_zero(more) > CLEAR,
        f"at the same gain {told} forgets {more.mean:+.3f} nats more than the interpolations, "
        f"{above_zero(more):.1f} deviations of the difference above zero",
    )


def _against_rate(records: Records) -> Verdict:
    told = f"the run from a peak of {LOW:g} (against those of the run from {PEAK:g}; no replay)"
    return _beats(records, "interpolation.beats-lower-rate", RUNS[0], LOW_RATE, told)


def _against_replay(records: Records) -> Verdict:
    told = f"the run with 50 % replay (against those of the run with {REPLAYS[-1]:.0%})"
    return _beats(records, "interpolation.beats-more-replay", RUNS[-1], MUCH_REPLAY, told)


def _table(records: Records) -> Table:
    rows = []
    for replay, run in zip(REPLAYS, RUNS, strict=True):
        found = [records.run(replace(run, seed=seed)) for seed in SEEDS]
        runs = [one for one in found if one is not None]
        cells = []
        for share in (1.0, *reversed(INTERPOLATED)):
            points = [records.point(one, _losses(one, share)) for one in runs]
            gain, forgetting = (Sample(tuple(p[axis] for p in points)) for axis in (0, 1))
            cells.append(f"{gain.spread}; {forgetting.spread}" if points else "not run yet")
        rows.append((f"{replay:.0%}", str(len(runs)), *cells))
    header = ("replay", "seeds", *(f"share {share:g}" for share in (1.0, *reversed(INTERPOLATED))))
    return Table("Gain; forgetting, in nats, by share of the adapted model", header, tuple(rows))


def _losses(run: Mapping[str, Any], share: float) -> Mapping[str, Any]:
    if share == 1.0:
        return dict(run["readings"][-1])
    return next(dict(blend) for blend in run["blends"] if blend["name"] == f"i{share:g}")


def figure(records: Records) -> bytes:
    """One line a run, from the adapted model towards the base."""
    series = []
    for replay, run in zip(REPLAYS, RUNS, strict=True):
        runs = [one for one in (records.run(replace(run, seed=seed)) for seed in SEEDS) if one is not None]
        points = []
        for share in (1.0, *reversed(INTERPOLATED)):
            pairs = [records.point(one, _losses(one, share)) for one in runs]
            points.append((Sample(tuple(p[0] for p in pairs)), Sample(tuple(p[1] for p in pairs))))
        series.append(Series(f"{replay:.0%} replay", tuple(points)))
    return plane(series)


EXPERIMENT = Experiment(
    name="interpolation",
    title="Interpolation with the base",
    hypothesis=(
        "Models between base and adapted weights, which cost no training, enlarge the front of gain and forgetting; "
        "they beat training at a lower rate, and beat more replay."
    ),
    thresholds=(
        f"the front's hypervolume (corner: no gain, {WORST_FORGETTING_NATS:g} nats forgotten) grows by at least "
        f"{LEAST_MORE_VOLUME:.0%}, and by more than {CLEAR:g} deviations of the difference paired by seed",
        f"a run at half the rate forgets more than the interpolations at its gain, by more than {CLEAR:g} deviations",
        f"and so does a run with 50 % replay, against the interpolations of the one with {REPLAYS[-1]:.0%}",
    ),
    runs=lambda seeds: over(seeds, [*RUNS, MUCH_REPLAY, LOW_RATE]),
    judge=judge,
    figure=figure,
    claims=("interpolation.front", "interpolation.beats-lower-rate", "interpolation.beats-more-replay"),
)
