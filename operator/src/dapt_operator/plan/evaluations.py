"""Evaluations: which are due, how many may run at once, and what runs beside the chain.

They run beside pretraining and blending where the work volume can be mounted by many nodes, and never hold either up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from dapt_operator.plan.assess import STARTABLE, StageAssessment
from dapt_operator.plan.transitions import Fact

ORDER: Final = (
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
"""Which of several evaluations speaks for all: what goes on by itself before what needs a person."""


def spokesman(looks: Sequence[StageAssessment], room: int) -> StageAssessment:
    """The one of several evaluations whose fact stands for all: one that can start while there is room, else by ORDER.

    Args:
        looks: at least one.
        room: so many more may run.
    """
    return startable(looks, room) or min(looks, key=lambda look: ORDER.index(look.fact))


def startable(looks: Iterable[StageAssessment], room: int) -> StageAssessment | None:
    """The first evaluation that can start now; None when there is no room or none is due."""
    return next((look for look in looks if look.fact in STARTABLE), None) if room > 0 else None
