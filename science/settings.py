"""One adaptation of the base model: what is trained and what is measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from science.model import Rate


@dataclass(frozen=True)
class Penalty:
    """dapt's regularization against forgetting."""

    kind: str
    """`ewc`, `l2sp` or `klToBase`."""
    strength: float
    samples: int = 1000
    """General sequences behind the Fisher information."""


@dataclass(frozen=True)
class Adaptation:
    """Settings of one run; equal settings are the same run in every experiment."""

    domain: str = "strong"
    """`strong`, `weak`, `shuffled` (strong, with the tokens of each row in any order) or `small` (a part of strong)."""
    replay: float = 0.0
    rate: Rate = field(default_factory=Rate)
    steps: int = 300
    readings: int = 1
    """Checkpoints that are measured, evenly over the run."""
    shares: tuple[float, ...] = ()
    """Interpolations with the base that are measured of the last checkpoint."""
    averaged: int = 1
    """Last checkpoints whose mean is measured; 1: none."""
    penalty: Penalty | None = None
    seed: int = 1
