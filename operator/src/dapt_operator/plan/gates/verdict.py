"""What a gate is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from dapt_contract.measure import Measure
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec

WITHIN_NOISE: Final = "WithinNoise"
"""Reason of a verdict that lets a model pass though chance may have decided it: only the first candidate is given the
benefit of the doubt."""
FINISHED_MODEL: Final = "the finished model"
"""Name under which verdicts speak of the model after all tuning."""


@dataclass(frozen=True)
class GateFacts:
    """All that a gate judges by, besides the spec: one model and the base model, measured on the same text and items.

    A gate must decide by these stored numbers alone, so that an edited limit is judged again without a run.
    """

    name: str
    """The candidate's id, or `the finished model`; messages name the model by it."""
    base: Measure
    measured: Measure
    is_evaluated: bool = True
    """False while only the perplexities of a candidate are known: a gate of scores then returns no verdict."""


@dataclass(frozen=True)
class Verdict:
    """Whether one gate lets one model pass, and why. A gate returns one for each thing that it compares."""

    gate: str
    """Name of the gate; a gate that compares several tasks uses it for each of them."""
    passed: bool
    reason: str
    """One word, the same for equal outcomes: `WithinLimit`, `LimitExceeded`."""
    message: str
    """One sentence with the model, the number and the limit; the status and the model card quote it."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """The numbers of the message unrounded, by name, for reports."""


@dataclass(frozen=True)
class Gate:
    """One rule that a model must pass before it may be published."""

    name: str
    """Its name in verdicts, and so in the status."""
    heading: str
    """Its column in the report's table of candidates."""
    judge: Callable[[DomainAdaptationSpec, GateFacts], tuple[Verdict, ...]]
    """Pure. Returning no verdict lets the model pass."""
