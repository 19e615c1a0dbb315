"""Evaluations: where they may run, how many at once, and which one stands for several.

They run alongside pretraining and blending where many nodes can mount the work volume, and never hold either up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from dapt_operator.api.v1alpha1.stored.run_record import StageKey
from dapt_operator.plan.chain_parts.assess import STARTABLE, ChainInputs, StageAssessment, assess_stage
from dapt_operator.plan.selection.candidates import Candidate
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, StagePlan
from dapt_operator.plan.stages.evaluate import evaluate_stage
from dapt_operator.plan.transitions import Fact, State
from dapt_operator.remembered import remembered

_CACHED_STAGES: Final = 128
STATES_WITH_EVALUATIONS: Final = frozenset({State.PRETRAIN, State.BLEND})
"""States in which evaluations run alongside the chain, where many nodes can mount the volume."""

FACT_ORDER: Final = (
    Fact.STOPPING,
    Fact.SPENT,
    Fact.RUNNING,
    Fact.BACKOFF,
    Fact.CROWDED,
    Fact.HINDERED,
    Fact.UNPLACED,
    Fact.OBSTRUCTED,
    Fact.REFUSED,
    Fact.HELD,
    Fact.OVERSPENT,
    Fact.EXHAUSTED,
    Fact.ABSENT,
    Fact.DUE,
)
"""Which of several evaluations stands for all: one that continues by itself before one that requires user action."""


def may_evaluate_alongside(state: State, inputs: ChainInputs) -> bool:
    """Whether evaluations may run alongside the stage of a state."""
    return state in STATES_WITH_EVALUATIONS and inputs.profile.storage.is_shared


def companions_in(
    state: State, inputs: ChainInputs, awaited: AbstractSet[str], candidates: AbstractSet[str]
) -> frozenset[StageKey]:
    """Return the evaluations whose live runs continue in a state.

    Args:
        state: of the chain.
        inputs: everything known.
        awaited: candidates that the selection waits for.
        candidates: every candidate that there is.
    """
    running = inputs.ledger.open_work("evaluate")
    if state is State.EVALUATE:
        return frozenset(work for work in running if work.candidate in awaited)
    if state is State.SELECT:
        return running
    if state is State.BLEND:
        # The attempt has ended and its table is final: a checkpoint that a reading reported and that is not in the
        # table does not exist, and its evaluation is stopped.
        running = frozenset(work for work in running if work.candidate in candidates)
    goes_on = may_evaluate_alongside(state, inputs) and inputs.spec.evaluation.when != "end"
    return running if goes_on else frozenset()


def assess_evaluations(
    inputs: ChainInputs,
    stage_inputs: StageInputs,
    wanted: Iterable[Candidate],
    companions: AbstractSet[StageKey],
) -> tuple[StageAssessment, ...]:
    """Return the fact of each candidate's evaluation.

    Args:
        inputs: everything known.
        stage_inputs: of every stage after prepare.
        wanted: candidates to evaluate.
        companions: work whose newest runs may run in parallel.
    """
    return tuple(assess_stage(inputs, _stage_of(stage_inputs, candidate), companions) for candidate in wanted)


@remembered(_CACHED_STAGES)
def _stage_of(inputs: StageInputs, candidate: Candidate) -> StagePlan:
    return evaluate_stage(
        inputs, candidate.id, candidate.model, attempt=candidate.attempt, digest=candidate.digest
    )


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
