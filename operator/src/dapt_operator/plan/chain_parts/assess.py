"""Assesses one stage: everything known about its newest run becomes one fact of the table of transitions."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from dapt_operator.api.v1alpha1.conditions import PENDING_TIMEOUT
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord, StageKey
from dapt_operator.plan.chain_parts.waiting import hindrance, overdue
from dapt_operator.plan.ledger.gpu_hours import is_spent
from dapt_operator.plan.ledger.retries import JUDGED, stalled
from dapt_operator.plan.observed import DesiredState, Observed, Obstacle, find_run
from dapt_operator.plan.sizing.model_fit.batch import MemoryRule
from dapt_operator.plan.stage_parts.stage_plan import StagePlan
from dapt_operator.plan.transitions import Fact
from dapt_operator.stage_run import RunState

RETRIES_AHEAD: Final = frozenset({Fact.DUE, Fact.BACKOFF, Fact.HELD, Fact.CROWDED})
"""Facts of a failed stage that another run is to follow."""
STARTABLE: Final = frozenset({Fact.ABSENT, Fact.DUE})
"""Facts with which a run may be created in this very reconcile."""


@dataclass(frozen=True)
class ChainInputs:
    """What the position in the chain is found from."""

    desired: DesiredState
    ledger: Ledger
    now: datetime
    generation: int
    name: str
    """Name of the adaptation."""
    runs: tuple[RunState, ...] = ()
    """Runs whose processes may exist."""
    left_seconds: float | None = None
    """Accelerator-seconds left of the limit; None without one."""
    obstacle: Obstacle | None = None
    """Why the objects of the due run cannot be created; None while nothing is known to prevent it."""

    @classmethod
    def of(
        cls, observed: Observed, desired: DesiredState, ledger: Ledger, left_seconds: float | None
    ) -> ChainInputs:
        """Return what the position is found from while everything that was observed counts."""
        return cls(
            desired=desired,
            ledger=ledger,
            now=observed.now,
            generation=observed.generation,
            name=observed.owner.name,
            runs=observed.live,
            left_seconds=left_seconds,
            obstacle=observed.obstacle,
        )

    @property
    def spec(self) -> DomainAdaptationSpec:
        """Desired spec."""
        return self.desired.spec

    @property
    def profile(self) -> AdaptationProfileSpec:
        """Profile of the desired spec."""
        return self.desired.profile


@dataclass(frozen=True)
class StageAssessment:
    """The fact of one state, and what it was found from."""

    fact: Fact
    stage: StagePlan | None = None
    """The stage as it would run now; None for a fact that was found without one."""
    record: RunRecord | None = None
    reason: str = ""
    message: str = ""


def assess_stage(
    inputs: ChainInputs, stage: StagePlan, companions: AbstractSet[StageKey] = frozenset()
) -> StageAssessment:
    """Return the fact of a stage's newest run.

    Args:
        inputs: everything known.
        stage: as it would run now.
        companions: work whose newest runs may run in parallel.
    """
    record = inputs.ledger.find(*stage.stage_key)
    if record is None:
        return _to_run(inputs, Fact.ABSENT, stage, None, companions)
    if record.is_open:
        return _running(inputs, stage, record)
    is_outdated = stage.is_outdated(record)
    if record.has_succeeded and not is_outdated:
        return StageAssessment(Fact.SUCCEEDED, stage, record)
    # No failure: its checkpoints are judged. With a retry due, its message was lost and is read again first.
    if record.cause in JUDGED and stage.kind == "pretrain" and not record.retry:
        return StageAssessment(Fact.LIMIT, stage, record)
    # A change of the spec, or of the files that it names, is how a user starts again what was given up.
    if not record.retry and record.generation == inputs.generation and not is_outdated:
        return exhausted(inputs, stage, record)
    if record.not_before is not None and inputs.now < datetime.fromisoformat(record.not_before):
        return _to_run(inputs, Fact.BACKOFF, stage, record, companions)
    return _to_run(inputs, Fact.DUE, stage, record, companions)


def memory_rule(ledger: Ledger, record: RunRecord | None) -> MemoryRule:
    """Return what a training stage must fit into, by what of it has run.

    Nothing that a later version estimates, and no edit of the profile, ends a run that lives or undoes one that has
    ended well. Once pretraining has started, what follows fits as the version planned that started it.
    """
    if record is not None and (record.is_open or record.has_succeeded or record.cause in JUDGED):
        return "any"
    return "asEarlier" if "pretrain" in ledger.started_kinds() else "withMargin"


def exhausted(inputs: ChainInputs, stage: StagePlan, record: RunRecord) -> StageAssessment:
    """Return the assessment of a failed stage that gets no further run."""
    reason, message = stalled(record, inputs.profile.retries)
    return StageAssessment(Fact.EXHAUSTED, stage, record, reason, message)


def _running(inputs: ChainInputs, stage: StagePlan, record: RunRecord) -> StageAssessment:
    if inputs.spec.suspend:
        return StageAssessment(Fact.STOPPING, stage, record)
    if stage.is_outdated(record):
        return StageAssessment(Fact.CROWDED, stage, record)
    is_over_limit = inputs.left_seconds is not None and inputs.left_seconds <= 0
    if is_over_limit and stage.resources.accelerators_per_node:
        return StageAssessment(Fact.SPENT, stage, record)
    run = find_run(inputs.runs, record)
    if run is None or run.is_deleting:
        # Created a moment ago and not in the watch's cache yet, or about to end; `update_ledger` finds it lost in time.
        return StageAssessment(Fact.RUNNING, stage, record)
    reason, message = hindrance(run, stage.kind, inputs.spec.queue)
    if reason:
        return StageAssessment(Fact.HINDERED, stage, record, reason, message)
    if inputs.obstacle is not None and run.is_waiting:
        # Something that its pods wait for is gone and cannot be made again.
        return StageAssessment(Fact.HINDERED, stage, record, inputs.obstacle.reason, inputs.obstacle.message)
    message = overdue(run, stage.kind, inputs.now, inputs.profile.pending_timeout_seconds)
    if message:
        return StageAssessment(Fact.UNPLACED, stage, record, PENDING_TIMEOUT, message)
    return StageAssessment(Fact.RUNNING, stage, record)


def _to_run(
    inputs: ChainInputs,
    fact: Fact,
    stage: StagePlan,
    record: RunRecord | None,
    companions: AbstractSet[StageKey],
) -> StageAssessment:
    """Return the fact of a stage that is to run, unless something prevents it."""
    if inputs.spec.suspend:
        # Runs alongside the chain are requested to stop too, before the adaptation counts as held.
        must_stop = any(run.is_live and run.stage_key in companions for run in inputs.runs)
        return StageAssessment(Fact.STOPPING if must_stop else Fact.HELD, stage, record)
    if stage.resources.accelerators_per_node and is_spent(inputs.left_seconds, record):
        return StageAssessment(Fact.OVERSPENT, stage, record)
    if any(_must_end_first(inputs, run, companions) for run in inputs.runs):
        return StageAssessment(Fact.CROWDED, stage, record)
    if stage.refusal is not None and fact in STARTABLE:
        return StageAssessment(
            Fact.REFUSED, record=record, reason=stage.refusal.reason, message=stage.refusal.message
        )
    # Last, since an obstacle was met by a run that was about to be created; one that must wait anyway has not met it.
    if inputs.obstacle is not None and fact in STARTABLE:
        return StageAssessment(
            Fact.OBSTRUCTED, stage, record, inputs.obstacle.reason, inputs.obstacle.message
        )
    return StageAssessment(fact, stage, record)


def _must_end_first(inputs: ChainInputs, run: RunState, companions: AbstractSet[StageKey]) -> bool:
    """Whether a run must end before another may start: it is alive, and it is not the newest run of a companion."""
    if not run.is_live:
        return False
    key = run.stage_key
    if key not in companions:
        return True
    record = inputs.ledger.find(*key)
    return record is None or not record.is_open or not record.is_about(run.identity)
