"""What experiments share: seeds, statistics of a few runs, verdicts and tables.

Settings were chosen on the pilot's seed and on seed 0, with half A of the held-out text. Reported are seeds 1, 2 and 3
on half B. Spread is the standard deviation over seeds (n - 1); an effect is compared with the pooled deviation of the
two groups it is between.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from science.settings import Adaptation
from science.store import name_of

SEEDS = (1, 2, 3)
TUNING_SEED = 0
INTERPOLATED = (0.2, 0.4, 0.6, 0.8)
"""Shares between base and adapted weights that are measured beside the adapted ones."""
CLEAR = 2.0
"""Seed deviations that an effect must exceed: with three seeds a side the chance of a false one is a few per cent."""


@dataclass(frozen=True)
class Verdict:
    """`VERDICT name: yes|no - sentence`; open while runs are missing."""

    name: str
    holds: bool | None
    sentence: str

    @property
    def line(self) -> str:
        """As it is printed."""
        said = {True: "yes", False: "no", None: "open"}[self.holds]
        return f"VERDICT {self.name}: {said} - {self.sentence}"


@dataclass(frozen=True)
class Table:
    """A caption, a header and rows of text."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """What an experiment says of its records."""

    verdicts: tuple[Verdict, ...]
    tables: tuple[Table, ...] = ()


class Records:
    """Finished runs by their settings, and the base model's losses."""

    def __init__(self, runs: Sequence[Mapping[str, Any]], base: Mapping[str, Mapping[str, float]]) -> None:
        self._runs = {name_of(run["settings"]): run for run in runs}
        self._base = base

    def run(self, settings: Any) -> Mapping[str, Any] | None:
        """The record of exactly these settings."""
        return self._runs.get(name_of(settings))

    def over_seeds(self, adaptation: Any, value: Callable[[Mapping[str, Any]], float]) -> Sample:
        """One value a seed, of the seeds that are there."""
        runs = [self.run(replace(adaptation, seed=seed)) for seed in SEEDS]
        return Sample(tuple(value(run) for run in runs if run is not None))

    def base(self, domain: str, half: str) -> float:
        """The base model's loss on a side's half, for example `general_b`."""
        return self._base["weak" if domain == "weak" else "strong"][half]

    def shift(self, domain: str) -> float:
        """The base model's loss on a domain less that on general text, over both halves, as dapt measures it."""
        base = self._base["weak" if domain == "weak" else "strong"]
        return (base["domain_a"] + base["domain_b"] - base["general_a"] - base["general_b"]) / 2

    def missing(self, adaptations: Sequence[Any]) -> bool:
        """Whether some seed of some of these was not run."""
        return any(self.run(settings) is None for settings in over(SEEDS, adaptations))

    def forgetting(self, run: Mapping[str, Any], half: str = "b") -> float:
        """Nats a token that general text costs more than under the base model, at the last reading."""
        last = run["readings"][-1]
        return float(last[f"general_{half}"] - self.base(run["settings"]["domain"], f"general_{half}"))

    def base_losses(self, run: Mapping[str, Any]) -> Mapping[str, float]:
        """All four of the base model, for a run's domain."""
        return self._base["weak" if run["settings"]["domain"] == "weak" else "strong"]

    def point(
        self, run: Mapping[str, Any], losses: Mapping[str, float], half: str = "b"
    ) -> tuple[float, float]:
        """(gain, forgetting) of any model of a run by its losses."""
        base = self.base_losses(run)
        return (
            float(base[f"domain_{half}"] - losses[f"domain_{half}"]),
            float(losses[f"general_{half}"] - base[f"general_{half}"]),
        )

    def gain(self, run: Mapping[str, Any], half: str = "b") -> float:
        """Nats a token that domain text costs less, at the last reading."""
        last = run["readings"][-1]
        return float(self.base(run["settings"]["domain"], f"domain_{half}") - last[f"domain_{half}"])


@dataclass(frozen=True)
class Sample:
    """One value a seed."""

    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Not a number without values."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Over seeds, n - 1; not a number below two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def text(self) -> str:
        """`0.123 ± 0.004 (3)`."""
        if not self.values:
            return "not run yet"
        return f"{self.spread} ({len(self.values)})"

    @property
    def spread(self) -> str:
        """`0.123 ± 0.004`."""
        return f"{self.mean:.3f}" + (f" ± {self.deviation:.3f}" if len(self.values) > 1 else "")


def pooled(*samples: Sample) -> float:
    """Root of the mean of the variances; not a number where a group has one value."""
    return math.sqrt(statistics.fmean(sample.deviation**2 for sample in samples)) if samples else math.nan


def effect(low: Sample, high: Sample) -> float:
    """(mean of high - mean of low) / pooled deviation: positive when high is above."""
    deviation = pooled(low, high)
    gap = high.mean - low.mean
    if deviation == 0.0:
        return math.copysign(math.inf, gap) if gap else 0.0
    return gap / deviation


def deviations(low: Sample, high: Sample) -> str:
    """`+3.1`: how far high lies above low, in pooled seed deviations; empty below two seeds a side."""
    return f"{effect(low, high):+.1f}" if min(len(low), len(high)) > 1 else ""


def above_zero(sample: Sample) -> float:
    """Mean over deviation of a difference that is paired by seed."""
    if sample.deviation == 0.0:
        return math.copysign(math.inf, sample.mean) if sample.mean else 0.0
    return sample.mean / sample.deviation


def forgetting_at(curve: Sequence[tuple[float, float]], gain: float) -> float | None:
    """Forgetting at a gain on the line through (gain, forgetting) points; None outside of them."""
    points = sorted(curve)
    for (low, at_low), (high, at_high) in pairwise(points):
        if low <= gain <= high:
            return at_low + (at_high - at_low) * (gain - low) / (high - low) if high > low else at_low
    return None


def strong_run(replay: float) -> Adaptation:
    """The plain run on the strong shift, with interpolations, that several experiments read."""
    return Adaptation(replay=replay, shares=INTERPOLATED)


def followed_run(replay: float, domain: str = "strong") -> Adaptation:
    """The run whose checkpoints are measured, as dapt does it: ten of them, interpolations and a mean of the last."""
    return Adaptation(domain=domain, replay=replay, readings=10, shares=(0.6, 0.8), averaged=3)


@dataclass(frozen=True)
class Experiment:
    """A claim, how it is tested, and how it can fail."""

    name: str
    title: str
    hypothesis: str
    thresholds: tuple[str, ...]
    """Fixed before any reported run, each with its reason."""
    runs: Callable[[Sequence[int]], list[Any]]
    """Settings of every run, for these seeds."""
    judge: Callable[[Records], Outcome]
    figure: Callable[[Records], bytes] | None = None
    moved: tuple[str, ...] = ()
    """Questions that were asked otherwise after a result had been seen."""
    claims: tuple[str, ...] = field(default=())
    """Names of the verdicts, for when nothing was run."""


def over(seeds: Sequence[int], adaptations: Sequence[Any]) -> list[Any]:
    """Each adaptation with each seed."""
    return [replace(adaptation, seed=seed) for seed in seeds for adaptation in adaptations]


def open_verdict(name: str, records: Records, runs: Sequence[Any]) -> Verdict | None:
    """The verdict of an experiment whose runs are not all there; None when they are."""
    there = sum(records.run(settings) is not None for settings in runs)
    if there == len(runs):
        return None
    return Verdict(name, None, f"{there} of its {len(runs)} runs were done")


def signed(value: float) -> str:
    """Three digits with a sign."""
    return f"{value:+.3f}"


def percent(nats: float) -> str:
    """A difference of losses as a change of perplexity."""
    return f"{math.expm1(nats):+.1%}"
