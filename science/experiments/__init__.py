"""The experiments, in the order in which they are told."""

from __future__ import annotations

from science.experiments import best, defaults, gates, interpolation, penalty, replay, rows, schedule
from science.experiments.common import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    replay.EXPERIMENT,
    schedule.EXPERIMENT,
    penalty.EXPERIMENT,
    rows.EXPERIMENT,
    interpolation.EXPERIMENT,
    gates.EXPERIMENT,
    best.EXPERIMENT,
    defaults.EXPERIMENT,
)

__all__ = ["EXPERIMENTS", "Experiment"]
