"""Which share of replay keeps the limit at which shift: fitted on the replay runs, checked on seeds and shares apart.

In nats of general text on half B: ln(forgetting) = level + fall x share + rise x shift.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy

from dapt_operator.plan.sizing import resolve
from science import controller, store
from science.experiments import EXPERIMENTS, replay
from science.experiments.common import Records, Table
from science.model import Rate

TITLE: Final = "How much replay a shift needs"
_FITTED_SHARES: Final = (0.15, 0.30)
LIMIT_NATS: Final = math.log1p(controller.spec().gates.max_general_perplexity_increase)
STEPS: Final = 300


@dataclass(frozen=True)
class Run:
    """A recorded run with replay at the default schedule."""

    domain: str
    shift: float
    share: float
    seed: int
    forgetting: float
    is_fitted: bool
    """Whether the line is fitted on it."""


Line = tuple[float, float, float]


def recorded(results: Path) -> tuple[Run, ...]:
    """Return the runs of 300 steps from a peak of 1e-3 in a cosine, by setting; of several experiments once."""
    found: dict[tuple[str, float, int], Run] = {}
    for experiment in EXPERIMENTS:
        facts, runs = store.read_results(results, experiment.name)
        records = Records(runs, facts["base_losses"]) if runs else None
        for run in runs:
            if records is not None and _is_usual(run):
                made = _run(records, run, is_fitted=experiment is replay.EXPERIMENT)
                key = (made.domain, made.share, made.seed)
                # The replay experiment comes first, so what it has in common with others counts as fitted.
                found.setdefault(key, made)
    return tuple(found[key] for key in sorted(found))


def _is_usual(run: dict[str, Any]) -> bool:
    settings = run["settings"]
    return (
        "readings" in run
        and not settings.get("penalty")
        and settings.get("domain") in ("strong", "weak")
        and settings.get("steps") == STEPS
        and settings.get("rate") == vars(Rate())
        and "replay" in settings
    )


def _run(records: Records, run: dict[str, Any], *, is_fitted: bool) -> Run:
    settings = run["settings"]
    return Run(
        domain=settings["domain"],
        shift=records.shift(settings["domain"]),
        share=settings["replay"],
        seed=settings["seed"],
        forgetting=records.forgetting(run),
        is_fitted=is_fitted and settings["replay"] in _FITTED_SHARES,
    )


def fitted(runs: Sequence[Run]) -> Line:
    """Return level, fall by share and rise by shift, by least squares of ln of the forgetting."""
    terms = numpy.array([(1.0, run.share, run.shift) for run in runs])
    level, fall, rise = numpy.linalg.lstsq(terms, numpy.log([run.forgetting for run in runs]), rcond=None)[0]
    return float(level), float(fall), float(rise)


def forgetting_by(line: Line, share: float, shift: float) -> float:
    """Return the nats that the line expects."""
    return math.exp(line[0] + line[1] * share + line[2] * shift)


def share_by(line: Line, shift: float, nats: float = LIMIT_NATS) -> float:
    """Return the share at which the line reaches this forgetting."""
    return (math.log(nats) - line[0] - line[2] * shift) / line[1]


def seeds_apart(runs: Sequence[Run]) -> Iterator[tuple[Run, float]]:
    """Return the fitted runs, each with what the line through the other seeds expects."""
    of_fit = [run for run in runs if run.is_fitted]
    for run in of_fit:
        line = fitted([other for other in of_fit if other.seed != run.seed])
        yield run, forgetting_by(line, run.share, run.shift)


def section(results: Path, table_text: Callable[[Table], str]) -> str:
    """Return the section of the page; empty while the replay runs are missing."""
    runs = recorded(results)
    of_fit = [run for run in runs if run.is_fitted]
    if not of_fit:
        return ""
    line = fitted(of_fit)
    shifts = sorted({run.shift for run in of_fit})
    apart = max(abs(expected - run.forgetting) for run, expected in seeds_apart(runs))
    needs = [share_by(line, shift) for shift in shifts]
    default = resolve.replay_by_shift(shifts[0])
    spare = [LIMIT_NATS - forgetting_by(line, default, shift) for shift in shifts]
    others = [run for run in runs if not run.is_fitted and run.share >= min(_FITTED_SHARES)]
    off = max(abs(forgetting_by(line, run.share, run.shift) - run.forgetting) for run in others)
    return "\n".join(
        (
            f"## {TITLE}",
            "",
            "By default the share of replay rises in a straight line from 5 % at no shift to"
            f" {resolve.STRONG_REPLAY_FRACTION:.0%} at {resolve.STRONG_SHIFT_NATS:g} nats, and stays there. Here a line"
            " is fitted to what the replay runs with 15 % and 30 % forget, in nats F on half B:"
            f" ln F = {line[0]:.2f} {line[1]:+.2f} x share {line[2]:+.2f} x shift. With the seed that is judged left"
            f" out of the fit it is off by at most {apart:.3f} nats, and by at most {off:.3f} on the {len(others)} runs"
            " with other seeds or shares from 15 % on.",
            "",
            f"Between {shifts[0]:.2f} and {shifts[-1]:.2f} nats the shift hardly matters: the limit of"
            f" {math.expm1(LIMIT_NATS):+.0%} is kept on average from {needs[0]:.0%} and {needs[-1]:.0%} on. The default"
            f" takes {default:.0%} at both: by the line {spare[0]:.3f} and {spare[-1]:.3f} nats below the limit."
            f" {' '.join(_kept(runs, domain) for domain in dict.fromkeys(run.domain for run in runs))} Earlier"
            " versions took 16 % at the weak shift, where the limit was kept by interpolation alone. A smaller limit"
            " may need more: `plan` says so.",
            "",
            table_text(_table(runs, line)),
            "**Where it holds.** Shifts from 0.5 to 1.1 nats, shares from 15 to 30 %, one base model of half a million"
            f" parameters, {STEPS} steps from a peak of {Rate().peak:g}; a higher rate or more steps forget more."
            " Shares of 5 % and below forget more than the line says at the strong shift. Below 0.5 nats nothing is"
            " recorded: there the default is a straight line down to 5 %, and may be more than is needed. Another base"
            " model was not tried.",
        )
    )


def _kept(runs: Sequence[Run], domain: str) -> str:
    """Return how many recorded runs keep the limit with the default's share, or with the shares around it."""
    of_domain = [run for run in runs if run.domain == domain]
    default = resolve.replay_by_shift(of_domain[0].shift)
    if any(run.share == default for run in of_domain):
        return f"At the {domain} shift {_count(of_domain, default)} runs with {default:.0%} keep it."
    below = max(run.share for run in of_domain if run.share < default)
    above = min(run.share for run in of_domain if run.share > default)
    return (
        f"At the {domain} shift no run with {default:.0%} is recorded: with {below:.0%} {_count(of_domain, below)}"
        f" keep it, with {above:.0%} {_count(of_domain, above)}."
    )


def _count(runs: Sequence[Run], share: float) -> str:
    of_share = [run.forgetting <= LIMIT_NATS for run in runs if run.share == share]
    return f"{sum(of_share)} of {len(of_share)}"


def _table(runs: Sequence[Run], line: Line) -> Table:
    rows = []
    for domain, share in dict.fromkeys((run.domain, run.share) for run in runs if run.share > 0.0):
        of_setting = [run for run in runs if (run.domain, run.share) == (domain, share)]
        seeds = ", ".join(str(run.seed) for run in of_setting)
        nats = statistics.fmean(run.forgetting for run in of_setting)
        most = max(run.forgetting for run in of_setting)
        expected = forgetting_by(line, share, of_setting[0].shift)
        within = sum(run.forgetting <= LIMIT_NATS for run in of_setting)
        rows.append(
            (
                domain,
                f"{share:.0%}",
                "fitted" if of_setting[0].is_fitted else "apart",
                seeds,
                f"{nats:.3f}",
                f"{most:.3f}",
                f"{expected:.3f}",
                f"{within} of {len(of_setting)}",
            )
        )
    header = ("shift", "replay", "in the fit", "seeds", "forgetting", "most", "by the line", "keep the limit")
    return Table("Last checkpoint without interpolation, nats on half B", header, tuple(rows))
