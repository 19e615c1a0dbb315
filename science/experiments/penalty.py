"""Penalties against forgetting beside replay, compared at the same gain on the domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    above_zero,
    effect,
    forgetting_at,
    open_verdict,
    over,
    signed,
    strong_run,
)
from science.penalties import KL_ROWS
from science.plots import Series, plane
from science.settings import Adaptation, Penalty

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)
WITH_REPLAY = (0.003, 0.03, 0.3)
L2SP_STRENGTHS = (0.003, 0.01, 0.03, 0.1)
"""On the tuning seed 0.1 leaves two thirds of the gain; more would leave little to compare."""
KL_STRENGTHS = (0.1, 0.3, 1.0)
KL_COMPUTE = 5 / 3
"""Of a plain step: a quarter more sequences, and the base model's predictions (measured on the tuning seed)."""
REPLAY = 0.05
CURVE = [strong_run(share) for share in (0.0, 0.01, 0.05, 0.15, 0.30, 0.50)]


def _run(kind: str, strength: float, share: float = 0.0) -> Adaptation:
    return Adaptation(replay=share, penalty=Penalty(kind, strength))


EWC = [_run("ewc", strength) for strength in STRENGTHS]
EWC_AND_REPLAY = [_run("ewc", strength, REPLAY) for strength in WITH_REPLAY]
L2SP = [_run("l2sp", strength) for strength in L2SP_STRENGTHS]
KL = [_run("klToBase", strength) for strength in KL_STRENGTHS]


LONGER = [Adaptation(replay=share, steps=500) for share in (0.05, 0.15, 0.30, 0.50)]
"""Replay with the compute that KL takes."""


def judge(records: Records) -> Outcome:
    """EWC by strength; EWC, EWC with replay and the other penalties against replay at the same gain."""
    verdicts = (
        _lowers(records),
        _against_replay(records),
        _with_replay(records),
        _against_l2sp(records),
        _kl(records),
    )
    return Outcome(verdicts, (_table(records),))


def excess(records: Records, run: Adaptation, curve: list[Adaptation]) -> Sample:
    """Forgetting above that of the curve at the same gain, by seed; seeds whose gain lies outside are left out."""
    values = []
    for seed in SEEDS:
        mine = records.run(replace(run, seed=seed))
        others = [records.run(replace(other, seed=seed)) for other in curve]
        if mine is None or any(other is None for other in others):
            continue
        points = [(records.gain(other), records.forgetting(other)) for other in others if other is not None]
        at = forgetting_at(points, records.gain(mine))
        if at is not None:
            values.append(records.forgetting(mine) - at)
    return Sample(tuple(values))


def _lowers(records: Records) -> Verdict:
    name = "penalty.ewc"
    missing = open_verdict(name, records, over(SEEDS, [CURVE[0], *EWC]))
    if missing:
        return missing
    forgotten = [records.over_seeds(run, records.forgetting) for run in (CURVE[0], *EWC)]
    steps = [effect(stronger, weaker) for weaker, stronger in pairwise(forgotten)]
    return Verdict(
        name,
        min(steps) > CLEAR,
        f"without replay, EWC from 0 to {STRENGTHS[-1]:g} takes forgetting from {forgotten[0].mean:.3f} to "
        f"{forgotten[-1].mean:.3f} nats; the smallest step is {min(steps):.1f} seed deviations",
    )


def _inside(
    records: Records, strengths: Sequence[float], runs: Sequence[Adaptation], curve: list[Adaptation]
) -> list[tuple[float, Sample]]:
    """How far each strength lies off the curve at the same gain; those that have a gain in common with it."""
    compared = [(s, excess(records, run, curve)) for s, run in zip(strengths, runs, strict=True)]
    return [(s, sample) for s, sample in compared if len(sample) == len(SEEDS)]


def _with_deviations(inside: Sequence[tuple[float, Sample]]) -> str:
    return "; ".join(
        f"{s:g}: {sample.mean:+.3f} ({above_zero(sample):+.1f} deviations)" for s, sample in inside
    )


def _against_replay(records: Records) -> Verdict:
    name = "penalty.replay-beats-ewc"
    missing = open_verdict(name, records, over(SEEDS, [*CURVE, *EWC]))
    if missing:
        return missing
    inside = _inside(records, STRENGTHS, EWC, CURVE)
    told = "; ".join(f"{strength:g}: {sample.mean:+.3f}" for strength, sample in inside)
    return Verdict(
        name,
        bool(inside) and all(above_zero(sample) > CLEAR for _, sample in inside),
        f"at the same gain EWC forgets more than replay alone by, in nats at its strength, {told or 'none'} "
        f"({len(EWC) - len(inside)} of {len(EWC)} strengths gain less than 50 % replay does)",
    )


def _with_replay(records: Records) -> Verdict:
    name = "penalty.ewc-adds-to-replay"
    missing = open_verdict(name, records, over(SEEDS, [*CURVE, *EWC_AND_REPLAY]))
    if missing:
        return missing
    inside = _inside(records, WITH_REPLAY, EWC_AND_REPLAY, CURVE)
    told = _with_deviations(inside)
    return Verdict(
        name,
        any(above_zero(sample) < -CLEAR for _, sample in inside),
        f"EWC with 5 % replay lies off the curve of replay alone by, in nats at its strength, {told or 'no strength'}",
    )


def _against_l2sp(records: Records) -> Verdict:
    name = "penalty.ewc-beats-l2sp"
    missing = open_verdict(name, records, over(SEEDS, [CURVE[0], *EWC, *L2SP]))
    if missing:
        return missing
    inside = _inside(records, L2SP_STRENGTHS, L2SP, [CURVE[0], *EWC])
    told = "; ".join(f"{s:g}: {sample.mean:+.3f}" for s, sample in inside)
    return Verdict(
        name,
        bool(inside) and all(above_zero(sample) > CLEAR for _, sample in inside),
        f"at the same gain L2-SP forgets more than EWC by, in nats at its strength, {told or 'nothing to compare'}",
    )


def _kl(records: Records) -> Verdict:
    name = "penalty.kl-beats-replay"
    missing = open_verdict(name, records, over(SEEDS, [*LONGER, *KL]))
    if missing:
        return missing
    inside = _inside(records, KL_STRENGTHS, KL, LONGER)
    told = _with_deviations(inside)
    return Verdict(
        name,
        any(above_zero(sample) < -CLEAR for _, sample in inside),
        f"against replay with {KL_COMPUTE:.2f} times the steps, at the same gain, KL to the base on {KL_ROWS} general "
        f"sequences a step forgets more by, in nats at its strength, {told or 'none: no gain in common'}",
    )


def _table(records: Records) -> Table:
    groups = [("EWC", STRENGTHS, EWC), ("EWC, 5 % replay", WITH_REPLAY, EWC_AND_REPLAY)]
    groups += [("L2-SP", L2SP_STRENGTHS, L2SP), ("KL to the base", KL_STRENGTHS, KL)]
    rows = [_row(records, f"replay {run.replay:.0%}", run) for run in CURVE]
    rows += [_row(records, f"replay {run.replay:.0%}, {run.steps} steps", run) for run in LONGER]
    for label, strengths, runs in groups:
        rows += [
            _row(records, f"{label} {strength:g}", run) for strength, run in zip(strengths, runs, strict=True)
        ]
    header = ("run", "gain, nats", "forgetting, nats", "forgetting above replay's at the same gain")
    return Table("Penalties and replay", header, tuple(rows))


def _row(records: Records, label: str, run: Adaptation) -> tuple[str, ...]:
    gain, forgetting = records.over_seeds(run, records.gain), records.over_seeds(run, records.forgetting)
    above = excess(records, run, CURVE) if run not in CURVE else Sample(())
    told = signed(above.mean) if len(above) else ""
    if len(above) > 1:
        told += f" ({above_zero(above):+.1f} deviations)"
    return (label, gain.text, forgetting.text, told)


def figure(records: Records) -> bytes:
    """The curves of each method."""

    def series(label: str, runs: list[Adaptation], names: tuple[str, ...]) -> Series:
        pairs = [
            (records.over_seeds(r, records.gain), records.over_seeds(r, records.forgetting)) for r in runs
        ]
        return Series(label, tuple(pairs), names)

    return plane(
        [
            series("replay", CURVE, tuple(f"{run.replay:.0%}" for run in CURVE)),
            series("EWC", EWC, tuple(f"{strength:g}" for strength in STRENGTHS)),
            series("EWC, 5 % replay", EWC_AND_REPLAY, ()),
            series("L2-SP", L2SP, tuple(f"{strength:g}" for strength in L2SP_STRENGTHS)),
            series("KL to the base", KL, tuple(f"{strength:g}" for strength in KL_STRENGTHS)),
        ]
    )


EXPERIMENT = Experiment(
    name="penalty",
    title="EWC and other penalties",
    hypothesis=(
        "EWC lowers forgetting with its strength, and does it better than L2-SP; at the same gain on the domain plain "
        "replay forgets less than EWC; EWC adds something to 5 % replay. All at equal steps; penalties cost a little "
        "more compute than replay, so equal steps favour them."
    ),
    thresholds=(
        f"each stronger EWC forgets less by more than {CLEAR:g} seed deviations",
        "on the line through the replay runs, at the EWC run's gain and with the same seed, replay forgets less by "
        f"more than {CLEAR:g} deviations of that difference, at every strength that the line reaches",
        f"some strength of EWC with 5 % replay lies below the replay line by more than {CLEAR:g} deviations",
        f"the same comparison between L2-SP and the line through the EWC runs, more than {CLEAR:g} deviations each",
        f"some strength of KL lies below the line through replay runs of {LONGER[0].steps} steps, the compute of KL, "
        f"by more than {CLEAR:g} deviations",
    ),
    runs=lambda seeds: over(seeds, [*CURVE, *EWC, *EWC_AND_REPLAY, *L2SP, *KL, *LONGER]),
    judge=judge,
    figure=figure,
    claims=(
        "penalty.ewc",
        "penalty.replay-beats-ewc",
        "penalty.ewc-adds-to-replay",
        "penalty.ewc-beats-l2sp",
        "penalty.kl-beats-replay",
    ),
)
