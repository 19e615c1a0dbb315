"""Evaluations: how many may run at once, and which one stands for several.

They run alongside pretraining and blending where many nodes can mount the work volume, and never hold either up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from dapt_operator.plan.assess import STARTABLE, StageAssessment
from dapt_operator.plan.transitions import Fact

FACT_ORDER: Final = (
    Fact.STOPPING,
    Fact.SPENT,
    Fact.RUNNING,
    Fact.BACKOFF,
    Fact.CROWDED,
    Fact.HINDERED,
    Fact.UNPLACED,
    Fact.OBSTRUCTED,
    Fact.HELD,
    Fact.OVERSPENT,
    Fact.EXHAUSTED,
    Fact.ABSENT,
    Fact.DUE,
)
"""Which of several evaluations stands for all: one that continues by itself before one that requires user action."""


def representative(assessments: Sequence[StageAssessment], free_slots: int) -> StageAssessment:
    """Return the evaluation whose fact stands for all: one that can start now, else the first by FACT_ORDER.

    Args:
        assessments: of at least one evaluation.
        free_slots: how many more evaluations may run.
    """
    return startable(assessments, free_slots) or min(
        assessments, key=lambda assessment: FACT_ORDER.index(assessment.fact)
    )


def startable(assessments: Iterable[StageAssessment], free_slots: int) -> StageAssessment | None:
    """Return the first evaluation that can start now; None when no slot is free or none is due."""
    # A smaller limit in an edited profile makes the number negative: what runs continues, nothing is added.
    if free_slots <= 0:
        return None
    return next((assessment for assessment in assessments if assessment.fact in STARTABLE), None)
