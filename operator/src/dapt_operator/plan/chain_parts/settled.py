"""What is settled at each point of the chain: values that exist once the stages before a state have finished.

A state of the chain takes the value that it relies on as an argument, so it cannot be assessed before that exists.
`StageInputs` is the first of them, after prepare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from dapt_contract.measure import Measure
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.selection.choose import Selected
from dapt_operator.plan.stage_parts.stage_plan import StageInputs
from dapt_operator.plan.stages.pretrain import PretrainingPlan

Value = TypeVar("Value")


class MissingFactsError(Exception):
    """The ledger has a finished stage without facts that this version of the operator can read."""


@dataclass(frozen=True)
class Measured(StageInputs):
    """What every state after baseline relies on."""

    base: Measure


@dataclass(frozen=True)
class Chosen(Measured):
    """What every state after selection relies on."""

    numbers: PretrainingPlan
    """Numbers of the newest attempt."""
    selected: Selected

    @property
    def candidate(self) -> Candidate:
        """Candidate that was chosen."""
        return self.selected.candidate


def known(value: Value | None, stage: str) -> Value:
    """Return what a finished stage has settled.

    Raises:
        MissingFactsError: the ledger does not hold it.
    """
    if value is None:
        raise MissingFactsError(f"{stage} has finished, and the ledger holds no readable facts of it")
    return value
