"""The experiments, in the order in which they are told."""

from __future__ import annotations

from science.experiments import replay
from science.experiments.common import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (replay.EXPERIMENT,)

__all__ = ["EXPERIMENTS", "Experiment"]
