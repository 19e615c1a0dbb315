"""The experiments, in the order in which they are told."""

from __future__ import annotations

from science.experiments import gates, interpolation, penalty, replay, schedule
from science.experiments.common import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    replay.EXPERIMENT,
    schedule.EXPERIMENT,
    penalty.EXPERIMENT,
    interpolation.EXPERIMENT,
    gates.EXPERIMENT,
)

__all__ = ["EXPERIMENTS", "Experiment"]
