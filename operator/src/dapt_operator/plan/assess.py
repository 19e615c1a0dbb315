"""One look at one stage: everything known about it falls into one bucket of the table's facts."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from dapt_operator.api.v1alpha1.conditions import PENDING_TIMEOUT
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.ledger.gpu_hours import is_spent
from dapt_operator.plan.ledger.records import Lineage, find, find_state, lineage_of
from dapt_operator.plan.ledger.retries import JUDGED, stalled
from dapt_operator.plan.observed import Obstacle
from dapt_operator.plan.stages.stage_plan import StagePlan
from dapt_operator.plan.transitions import Fact
from dapt_operator.plan.waiting import hindrance, overdue
from dapt_operator.stage_run import RunState

WOULD_TRY = frozenset({Fact.DUE, Fact.BACKOFF, Fact.HELD, Fact.CROWDED})
"""Another try of a failed stage is ahead."""
STARTABLE = frozenset({Fact.ABSENT, Fact.DUE})
"""A try may be created in this very visit."""


@dataclass(frozen=True)
class ChainInputs:
    """What the walk goes over."""

    spec: DomainAdaptationSpec
    profile: AdaptationProfileSpec
    ledger: Ledger
    now: datetime
    generation: int
    name: str
    runs: tuple[RunState, ...] = ()
    """Those whose processes may be there."""
    left_seconds: float | None = None
    """Accelerator-seconds left of the limit; None without one."""
    obstacle: Obstacle | None = None
    """Why the objects of the due try cannot be made; None: nobody tried, or nothing stood in the way."""


@dataclass(frozen=True)
class StageAssessment:
    """One state's fact, and what belongs to it."""

    fact: Fact
    stage: StagePlan | None = None
    record: RunRecord | None = None
    reason: str = ""
    message: str = ""


def assess_stage(
    at: ChainInputs, stage: StagePlan, beside: AbstractSet[Lineage] = frozenset()
) -> StageAssessment:
    """The bucket of a stage's newest try.

    Args:
        at: everything known.
        stage: as it would run now.
        beside: lineages whose newest tries may run at the same time.
    """
    record = find(at.ledger, stage.stage, stage.attempt, stage.candidate)
    if record is None:
        return _wanted(at, Fact.ABSENT, stage, None, beside)
    if record.state == "Open":
        return _open(at, stage, record)
    if record.state == "Succeeded":
        return StageAssessment(Fact.SUCCEEDED, stage, record)
    if record.cause in JUDGED and stage.kind == "pretrain" and not record.retry:
        return StageAssessment(Fact.LIMIT, stage, record)
    if not record.retry and record.generation == at.generation:
        return exhausted(at, StageAssessment(Fact.EXHAUSTED, stage, record))
    if record.not_before is not None and at.now < datetime.fromisoformat(record.not_before):
        return _wanted(at, Fact.BACKOFF, stage, record, beside)
    return _wanted(at, Fact.DUE, stage, record, beside)


def exhausted(at: ChainInputs, look: StageAssessment) -> StageAssessment:
    """The same stage, which gets no further try."""
    assert look.record is not None
    reason, message = stalled(look.record, at.profile.retries)
    return StageAssessment(Fact.EXHAUSTED, look.stage, look.record, reason, message)


def open_lineages(ledger: Ledger, kind: str) -> frozenset[Lineage]:
    """Lineages of a kind whose newest try is not known to have ended."""
    return frozenset(lineage_of(r) for r in ledger.runs if r.kind == kind and r.state == "Open")


def _open(at: ChainInputs, stage: StagePlan, record: RunRecord) -> StageAssessment:
    if at.spec.suspend:
        return StageAssessment(Fact.STOPPING, stage, record)
    if stage.resources.accelerators_per_node and at.left_seconds is not None and at.left_seconds <= 0:
        return StageAssessment(Fact.SPENT, stage, record)
    run = find_state(at.runs, record)
    if run is None or run.is_deleting:
        return StageAssessment(Fact.RUNNING, stage, record)
    reason, message = hindrance(run, stage.stage, at.spec.queue)
    if reason:
        return StageAssessment(Fact.HINDERED, stage, record, reason, message)
    message = overdue(run, stage.stage, at.now, at.profile.pending_timeout_seconds)
    if message:
        return StageAssessment(Fact.UNPLACED, stage, record, PENDING_TIMEOUT, message)
    return StageAssessment(Fact.RUNNING, stage, record)


def _wanted(
    at: ChainInputs, fact: Fact, stage: StagePlan, record: RunRecord | None, beside: AbstractSet[Lineage]
) -> StageAssessment:
    if at.spec.suspend:
        # what runs beside a stage is asked to stop too, before anything is held
        stops = any(lineage_of(run.identity) in beside for run in at.runs if run.is_live)
        return StageAssessment(Fact.STOPPING if stops else Fact.HELD, stage, record)
    if stage.resources.accelerators_per_node and is_spent(at.left_seconds, record):
        return StageAssessment(Fact.OVERSPENT, stage, record)
    if any(_is_in_the_way(at, run, beside) for run in at.runs):
        return StageAssessment(Fact.CROWDED, stage, record)
    if at.obstacle is not None and fact in STARTABLE:
        return StageAssessment(Fact.OBSTRUCTED, stage, record, at.obstacle.reason, at.obstacle.message)
    return StageAssessment(fact, stage, record)


def _is_in_the_way(at: ChainInputs, run: RunState, beside: AbstractSet[Lineage]) -> bool:
    """Whether a run must end before another may start: it lives, and it is not the newest try of a companion."""
    if not run.is_live:
        return False
    lineage = lineage_of(run.identity)
    record = find(at.ledger, *lineage)
    newest = record is not None and record.try_number == run.identity.try_number and record.state == "Open"
    return lineage not in beside or not newest
