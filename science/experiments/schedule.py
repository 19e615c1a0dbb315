"""Re-warming and re-decay of the learning rate against constant rates; the peak rate as a trade."""

from __future__ import annotations

from itertools import pairwise

from science.experiments.common import (
    CLEAR,
    SEEDS,
    Experiment,
    Outcome,
    Records,
    Sample,
    Table,
    Verdict,
    deviations,
    effect,
    open_verdict,
    over,
    strong_run,
)
from science.model import Rate
from science.plots import Series, plane
from science.settings import Adaptation

CONSTANT_RATES = (2e-4, 5e-4, 1e-3, 2e-3)
PEAK = 1e-3
LOW, HIGH = 5e-4, 2e-3


def constant(rate: float, replay: float = 0.0) -> Adaptation:
    """A run at one rate from start to end."""
    return Adaptation(replay=replay, rate=Rate(peak=rate, schedule="constant"))


def cosine(peak: float) -> Adaptation:
    """Warm-up, then cosine to a tenth, without replay."""
    if peak == PEAK:
        return strong_run(0.0)
    return Adaptation(replay=0.0, rate=Rate(peak=peak))


CONSTANTS = [constant(rate) for rate in CONSTANT_RATES]
BOTH = strong_run(0.05)
SQUARE = {
    ("constant", 0.0): constant(PEAK),
    ("constant", 0.05): constant(PEAK, 0.05),
    ("cosine", 0.0): cosine(PEAK),
    ("cosine", 0.05): BOTH,
}
PEAKS = (LOW, PEAK, HIGH)


def judge(records: Records) -> Outcome:
    """Dominance over constant rates; each factor of the square alone; the peak as a trade."""
    verdicts = (_dominates(records), _square(records), _trade(records))
    return Outcome(verdicts, (_rates_table(records), _square_table(records)))


def _pair(records: Records, run: Adaptation) -> tuple[Sample, Sample]:
    return records.over_seeds(run, records.gain), records.over_seeds(run, records.forgetting)


def _dominates(records: Records) -> Verdict:
    name = "schedule.dominates"
    missing = open_verdict(name, records, over(SEEDS, [BOTH, *CONSTANTS]))
    if missing:
        return missing
    gain, forgetting = _pair(records, BOTH)
    beaten, told = 0, []
    for rate, run in zip(CONSTANT_RATES, CONSTANTS, strict=True):
        other_gain, other_forgetting = _pair(records, run)
        learns, keeps = effect(other_gain, gain), effect(forgetting, other_forgetting)
        beaten += learns > 0 and keeps > 0 and max(learns, keeps) > CLEAR
        told.append(f"{rate:g}: {learns:+.1f} and {keeps:+.1f}")
    return Verdict(
        name,
        beaten == len(CONSTANTS),
        f"warm-up, cosine and 5 % replay beat {beaten} of {len(CONSTANTS)} constant rates without replay on gain "
        f"and on forgetting; in seed deviations, gain and forgetting at {'; '.join(told)}",
    )


def _square(records: Records) -> Verdict:
    name = "schedule.alone"
    missing = open_verdict(name, records, over(SEEDS, list(SQUARE.values())))
    if missing:
        return missing
    kept = {corner: records.over_seeds(run, records.forgetting) for corner, run in SQUARE.items()}
    plain = kept["constant", 0.0]
    by_schedule, by_replay = kept["cosine", 0.0], kept["constant", 0.05]
    both = kept["cosine", 0.05]
    effects = (
        effect(by_schedule, plain),
        effect(by_replay, plain),
        effect(both, by_schedule),
        effect(both, by_replay),
    )
    return Verdict(
        name,
        min(effects) > CLEAR,
        f"at a peak of {PEAK:g} the schedule alone takes {plain.mean - by_schedule.mean:.3f} nats off the forgetting "
        f"of {plain.mean:.3f}, 5 % replay alone {plain.mean - by_replay.mean:.3f}, both {plain.mean - both.mean:.3f}; "
        f"the smallest of the four differences is {min(effects):.1f} seed deviations",
    )


def _trade(records: Records) -> Verdict:
    name = "schedule.peak"
    missing = open_verdict(name, records, over(SEEDS, [cosine(peak) for peak in PEAKS]))
    if missing:
        return missing
    pairs = [_pair(records, cosine(peak)) for peak in PEAKS]
    more_gain = [effect(low[0], high[0]) for low, high in pairwise(pairs)]
    more_forgetting = [effect(low[1], high[1]) for low, high in pairwise(pairs)]
    return Verdict(
        name,
        min(more_gain) > CLEAR and min(more_forgetting) > CLEAR,
        f"from a peak of {LOW:g} to {HIGH:g} gain goes from {pairs[0][0].mean:.3f} to {pairs[-1][0].mean:.3f} nats and "
        f"forgetting from {pairs[0][1].mean:.3f} to {pairs[-1][1].mean:.3f}; smallest steps in seed deviations: "
        f"{min(more_gain):.1f} and {min(more_forgetting):.1f}",
    )


def _rates_table(records: Records) -> Table:
    runs = [(f"constant {rate:g}", run) for rate, run in zip(CONSTANT_RATES, CONSTANTS, strict=True)]
    runs += [(f"cosine from {peak:g}", cosine(peak)) for peak in PEAKS]
    runs.append((f"cosine from {PEAK:g}, 5 % replay", BOTH))
    rows = []
    for label, run in runs:
        gain, forgetting = _pair(records, run)
        apart = [
            deviations(mine, other)
            for mine, other in zip(_pair(records, BOTH), (gain, forgetting), strict=True)
        ]
        rows.append(
            (label, gain.text, forgetting.text, "; ".join(apart) if run != BOTH and all(apart) else "")
        )
    return Table(
        "Rates, no replay unless said",
        ("schedule", "gain, nats", "forgetting, nats", "above the last row, deviations: gain; forgetting"),
        tuple(rows),
    )


def _square_table(records: Records) -> Table:
    rows = []
    for schedule in ("constant", "cosine"):
        pairs = [_pair(records, SQUARE[schedule, replay]) for replay in (0.0, 0.05)]
        rows.append((schedule, *(f"{gain.text}; {forgetting.text}" for gain, forgetting in pairs)))
    header = (f"schedule, peak {PEAK:g}", "no replay: gain; forgetting", "5 % replay: gain; forgetting")
    return Table("Schedule and replay apart", header, tuple(rows))


def figure(records: Records) -> bytes:
    """All of them in the plane of gain and forgetting."""
    return plane(
        [
            Series(
                "constant rate",
                tuple(_pair(records, run) for run in CONSTANTS),
                tuple(f"{r:g}" for r in CONSTANT_RATES),
            ),
            Series(
                "cosine",
                tuple(_pair(records, cosine(peak)) for peak in PEAKS),
                tuple(f"{p:g}" for p in PEAKS),
            ),
            Series("cosine, 5 % replay", (_pair(records, BOTH),), (f"{PEAK:g}",)),
        ]
    )


EXPERIMENT = Experiment(
    name="schedule",
    title="Re-warming and re-decay",
    hypothesis=(
        "Warm-up and decay with a little replay are better than any constant rate without it, on gain and on "
        "forgetting at once; each of the two helps alone; the peak rate trades one for the other."
    ),
    thresholds=(
        "warm-up, cosine and 5 % replay have the better mean on both axes against every constant rate, on one of them "
        f"by more than {CLEAR:g} seed deviations (two, for the axes trade places along the rates)",
        f"in the square of schedule and replay each factor lowers forgetting by more than {CLEAR:g} seed deviations, "
        "with the other and without it",
        f"gain and forgetting both rise by more than {CLEAR:g} seed deviations with each doubling of the peak",
    ),
    runs=lambda seeds: over(seeds, _distinct()),
    judge=judge,
    figure=figure,
    claims=("schedule.dominates", "schedule.alone", "schedule.peak"),
)


def _distinct() -> list[Adaptation]:
    return list(dict.fromkeys([*CONSTANTS, *SQUARE.values(), *(cosine(peak) for peak in PEAKS)]))
