"""What a gate sees and says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dapt_contract.measure import Measure
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec


@dataclass(frozen=True)
class GateFacts:
    """One model against the base model, both measured on the same text and items."""

    name: str
    """The candidate's id, or `the finished model`."""
    base: Measure
    measured: Measure


@dataclass(frozen=True)
class Verdict:
    """What one gate says of one model."""

    gate: str
    passed: bool
    reason: str
    """One word."""
    message: str
    """One sentence with the numbers."""
    numbers: Mapping[str, float] = field(default_factory=dict)


Gate = Callable[[DomainAdaptationSpec, GateFacts], tuple[Verdict, ...]]
