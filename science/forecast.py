"""How well the first readings tell general perplexity at the end: the forecast's powers and errors, from the records.

Each setting's runs are forecast with powers fitted on the other settings, since a user's run is like none of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy

from dapt_operator.plan.stage_parts.forecast import ERRORS, TrainingCourse
from science import store
from science.experiments import EXPERIMENTS
from science.experiments.common import Records, Table

TITLE: Final = "Forecast of general perplexity"
LEAST_READINGS: Final = 10
REPEATED: Final = "small"
"""Domain whose text is read 31 times: unlike what the powers are fitted on, and shown as such."""


@dataclass(frozen=True)
class Reading:
    """One reading of a recorded run, with what it came to at the end."""

    setting: str
    part: float
    """Of the steps."""
    replay: float
    rise: float
    """Nats of general text above the base model, over both halves."""
    last_rise: float
    time: float
    """ln(T / t)."""
    rate: float
    """ln of the last rate over that of the reading."""

    @property
    def terms(self) -> tuple[float, float, float]:
        """Return what the powers of time, rate and replay are multiplied with."""
        return self.time, self.rate, -self.replay * self.time

    @property
    def grown(self) -> float:
        """Return ln of the last rise over this one."""
        return math.log(self.last_rise / self.rise)


Powers = tuple[float, float, float]


def readings(results: Path) -> tuple[Reading, ...]:
    """Return every reading but the last of all recorded runs without a penalty; runs of several experiments once."""
    seen: set[str] = set()
    found: list[Reading] = []
    for experiment in EXPERIMENTS:
        facts, runs = store.read_results(results, experiment.name)
        for run in runs:
            name = store.name_of(run["settings"])
            if (
                name in seen
                or len(run.get("readings", ())) < LEAST_READINGS
                or run["settings"].get("penalty")
            ):
                continue
            seen.add(name)
            found += _readings(run, Records(runs, facts["base_losses"]).base_losses(run))
    return tuple(found)


def _readings(run: Mapping[str, Any], base: Mapping[str, float]) -> list[Reading]:
    settings = run["settings"]
    rate = settings["rate"]
    is_constant = rate["schedule"] == "constant"
    course = TrainingCourse(
        total_steps=settings["steps"],
        replay_fraction=settings["replay"],
        warmup_fraction=rate["warmup_fraction"],
        minimum_ratio=1.0 if is_constant else rate["minimum_ratio"],
    )
    rises = [_general(reading) - _general(base) for reading in run["readings"]]
    setting = f"{settings['domain']}, {settings['replay']:.0%} replay, {rate['schedule']} {rate['peak']:g}"
    return [
        Reading(
            setting=setting,
            part=reading["step"] / settings["steps"],
            replay=settings["replay"],
            rise=rise,
            last_rise=rises[-1],
            time=math.log(settings["steps"] / reading["step"]),
            rate=math.log(course.rate_at(settings["steps"]) / course.rate_at(reading["step"])),
        )
        for reading, rise in zip(run["readings"][:-1], rises, strict=False)
    ]


def _general(losses: Mapping[str, float]) -> float:
    return (losses["general_a"] + losses["general_b"]) / 2


def fitted(known: Sequence[Reading]) -> Powers:
    """Return the powers of time, rate and replay by least squares of ln of the rise."""
    terms = numpy.array([reading.terms for reading in known])
    grown = numpy.array([reading.grown for reading in known])
    time, rate, replay = numpy.linalg.lstsq(terms, grown, rcond=None)[0]
    return float(time), float(rate), float(replay)


def usual(known: Sequence[Reading]) -> tuple[Reading, ...]:
    """Return the readings that the powers are fitted on."""
    return tuple(reading for reading in known if not reading.setting.startswith(REPEATED))


def held_out_errors(known: Sequence[Reading]) -> list[tuple[Reading, float]]:
    """Return each reading with ln of the forecast over the truth; no run of its setting was in the fit."""
    found = []
    for setting in dict.fromkeys(reading.setting for reading in known):
        powers = fitted([reading for reading in usual(known) if reading.setting != setting])
        found += [
            (reading, float(numpy.dot(powers, reading.terms)) - reading.grown)
            for reading in known
            if reading.setting == setting
        ]
    return found


def largest_errors(known: Sequence[Reading]) -> dict[float, float]:
    """Return the largest error by part of the steps, over what the powers are fitted on."""
    errors = held_out_errors(usual(known))
    parts = dict.fromkeys(round(reading.part, 3) for reading, _ in errors)
    return {
        part: max(abs(error) for reading, error in errors if round(reading.part, 3) == part) for part in parts
    }


def section(results: Path, table_text: Callable[[Table], str]) -> str:
    """Return the section of the page; empty where no run was read several times."""
    known = readings(results)
    if not known:
        return ""
    time, rate, replay = fitted(usual(known))
    return "\n".join(
        (
            f"## {TITLE}",
            "",
            "A rate that is still high makes a run look worse than it ends. The live view and"
            " `status.progress.forecast` say what the newest reading leads to expect; no gate and no stop reads it. The"
            " rise of the general loss over the base model's, r in nats, is taken to grow with the steps t and to"
            " shrink with the rate l: r(T) = r(t) x (T / t)^(a - c x replay) x (l(T) / l(t))^b. Fitted over all"
            " settings below but the last (which reads its text 31 times),"
            f" a = {time:.2f}, b = {rate:.2f}, c = {replay:.2f}.",
            "",
            "Below, the powers are fitted without the setting that is forecast. The error is that of ln r(T): 0.1 means"
            " that a true rise of 15 % is forecast as 13.5 or 16.7 %. The range that is shown beside a forecast is the"
            " largest error at that part of the steps.",
            "",
            table_text(_error_table(known)),
            table_text(_setting_table(known)),
            "**Where it holds.** Full training without a penalty, from the base model, with a cosine or a constant rate"
            " and up to 0.7 passes over the domain. For adapters, wsd, penalties and attempts that start from a"
            " checkpoint nothing is recorded, and text that is read again and again is forecast far too low at first:"
            " there dapt makes no forecast. All of it is one base model of half a million parameters and runs of 300"
            " steps; for a model a thousand times as large the range may be too narrow.",
        )
    )


def _error_table(known: Sequence[Reading]) -> Table:
    errors = held_out_errors(usual(known))
    rows = []
    for part, largest in largest_errors(known).items():
        of_part = [(reading, error) for reading, error in errors if round(reading.part, 3) == part]
        unchanged = statistics.fmean(abs(reading.grown) for reading, _ in of_part)
        mean = statistics.fmean(abs(error) for _, error in of_part)
        rows.append((f"{part:.0%}", f"{unchanged:.2f}", f"{mean:.2f}", f"{largest:.2f}"))
    header = (
        "steps done",
        "the reading itself, mean error",
        "forecast, mean error",
        "forecast, largest error",
    )
    return Table("Errors by part of the steps, each setting forecast from the others", header, tuple(rows))


def _setting_table(known: Sequence[Reading]) -> Table:
    errors = held_out_errors(known)
    settings = sorted(
        dict.fromkeys(reading.setting for reading in known), key=lambda name: name.startswith(REPEATED)
    )
    rows = []
    for setting in settings:
        of_setting = [(reading, error) for reading, error in errors if reading.setting == setting]
        rises = [reading.last_rise for reading, _ in of_setting]
        cells = [
            statistics.fmean(error for reading, error in of_setting if round(reading.part, 3) == part)
            for part in (0.2, 0.3, 0.5, 0.8)
        ]
        rows.append(
            (setting, f"{math.expm1(statistics.fmean(rises)):+.0%}", *(f"{cell:+.2f}" for cell in cells))
        )
    header = ("setting", "ends at", "error at 20%", "at 30%", "at 50%", "at 80%")
    return Table("Mean error by setting; below zero: forecast too low", header, tuple(rows))


def shown_errors() -> dict[float, float]:
    """Return the errors that the product shows beside a forecast, by part of the steps."""
    return dict(ERRORS)
