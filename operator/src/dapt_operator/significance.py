"""Says from which size on a loss on a task is no chance, for gates and for the sizing of evaluations. Pure."""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

CHANCE_OF_FALSE_FAILURE: Final = 0.05
"""Chance that a model which loses nothing fails on any of its tasks; at most, where the limit is 0."""


def errors_that_are_real(num_tasks: int) -> float:
    """Return how many standard errors a drop must have to be real on one of so many tasks."""
    return NormalDist().inv_cdf(1.0 - CHANCE_OF_FALSE_FAILURE / max(1, num_tasks))
