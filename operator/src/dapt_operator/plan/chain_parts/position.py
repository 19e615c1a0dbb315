"""Describes where an adaptation stands in its chain of stages, and what follows; `chain` finds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord, Ledger
from dapt_operator.api.v1alpha1.stored.run_record import StageKey
from dapt_operator.plan.chain_parts.assess import StageAssessment
from dapt_operator.plan.chain_parts.evaluations import startable
from dapt_operator.plan.chain_parts.input_checks import with_input_checks
from dapt_operator.plan.gates import Verdict
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.selection.choose import Choice
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, StagePlan
from dapt_operator.plan.stages.pretrain import PretrainingPlan
from dapt_operator.plan.transitions import Action, Fact, State

ENDS: Final = (Action.FINISH, Action.END)
"""Actions after which nothing runs again."""


@dataclass(frozen=True)
class Position:
    """Where an adaptation stands in its chain, what to do there, and what was found on the way."""

    state: State
    action: Action
    assessment: StageAssessment
    facts: Facts
    candidates: tuple[Candidate, ...] = ()
    stage_inputs: StageInputs | None = None
    """What every stage after prepare is planned from; None before prepare has finished."""
    numbers: PretrainingPlan | None = None
    """Numbers of the newest attempt; None before it was planned."""
    choice: Choice | None = None
    """None before an attempt has ended."""
    verdicts: tuple[Verdict, ...] = ()
    """Verdicts on the finished model, once it was verified."""
    rollback: AttemptRecord | None = None
    """The attempt that a rollback has decided on, with `Action.ROLL_BACK` and never else."""
    alongside: tuple[StageAssessment, ...] = ()
    """Evaluations that are due alongside the chain, as far as they can be planned."""
    companions: frozenset[StageKey] = frozenset()
    """Evaluations whose live runs continue."""
    free_slots: int = 0
    """How many more evaluations may run."""
    awaited: tuple[StageAssessment, ...] = ()
    """Evaluations that the selection waits for; `assessment` stands for all of them."""
    is_ending: bool = False
    """Whether everything is decided, and only the end of live runs is awaited."""

    @property
    def assessments(self) -> tuple[StageAssessment, ...]:
        """Return everything that was assessed here: the stage of the chain, and the evaluations."""
        return (self.assessment, *self.alongside, *self.awaited)

    def as_it_runs(self, stage: StagePlan, ledger: Ledger) -> StagePlan:
        """Return a stage of an assessment as its run is given it: with everything that is recorded of its inputs.

        An assessment does not depend on these records, and dozens are made in a reconcile that starts at most one run.

        Args:
            stage: as it was assessed.
            ledger: that the position was found from.
        """
        return with_input_checks(stage, self.facts, self.candidates, ledger)

    def awaiting_ends(self) -> Position:
        """Return the position as long as runs are alive where it would finish or end."""
        return replace(self, action=Action.CLEAR, is_ending=True)

    @property
    def to_start(self) -> StageAssessment | None:
        """The one stage that this reconcile starts: that of the chain, else an evaluation alongside it."""
        if self.action is Action.START:
            return self.assessment
        if self.action is Action.WAIT:
            return startable(self.alongside, self.free_slots)
        return None

    @property
    def has_more_to_start(self) -> bool:
        """Whether another evaluation can start once that stage is in the ledger."""
        start = self.to_start
        if start is None:
            return False
        others = [assessment for assessment in self.alongside if assessment is not start]
        num_taken = 0 if start is self.assessment else 1
        return startable(others, self.free_slots - num_taken) is not None

    @property
    def kept(self) -> frozenset[StageKey]:
        """Work whose live runs continue."""
        if self.action in (Action.STOP, Action.HOLD, *ENDS) or self.is_spent or self.is_ending:
            return frozenset()
        record = self.assessment.record
        if (
            record is None
            or not record.is_open
            or self.action not in (Action.WAIT, Action.STALL, Action.START)
        ):
            return self.companions
        return self.companions | {record.stage_key}

    @property
    def is_spent(self) -> bool:
        """Whether runs must end because limits.gpuHours is used up."""
        return self.assessment.fact is Fact.SPENT
