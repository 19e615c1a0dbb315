"""Kubernetes Events: a fixed set, told when a status says something new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dapt_contract.failure import Cause
from dapt_operator.api.v1alpha1.conditions import FINISHED, STALLED, find_condition, is_true
from dapt_operator.api.v1alpha1.events import (
    CANDIDATE_SELECTED,
    EVENTS,
    NORMAL,
    ROLLED_BACK,
    STAGE_FAILED,
    STAGE_STARTED,
    STAGE_SUCCEEDED,
    WARNING,
)
from dapt_operator.api.v1alpha1.ledger import Ledger
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus, StageStatus
from dapt_operator.plan.ledger.records import lineage_of
from dapt_operator.plan.stages.attempts import rollback_sentence

MAX_MESSAGE: Final = 1024
"""Characters of an Event's message: the API server takes no more."""


@dataclass(frozen=True)
class Notice:
    """One Event."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


def notices(
    before: DomainAdaptationStatus, after: DomainAdaptationStatus, learned: Ledger | None = None
) -> tuple[Notice, ...]:
    """What the second status tells that the first did not.

    Args:
        before: as stored.
        after: as it will be.
        learned: the ledger before this visit started anything: the next try may hide the end of the one before it.
    """
    found = list(_failures(before.ledger or Ledger(), learned or after.ledger or Ledger()))
    found += _steps(before, after)
    begun = len(before.ledger.attempts) if before.ledger else 0
    for attempt in after.ledger.attempts[begun:] if after.ledger else ():
        found.append(Notice(WARNING, ROLLED_BACK, rollback_sentence(attempt)[:MAX_MESSAGE]))
    if after.selected is not None and after.selected != before.selected:
        said = f"{after.selected.id}: {after.selected.reason}"
        found.append(Notice(NORMAL, CANDIDATE_SELECTED, said[:MAX_MESSAGE]))
    return (*found, *_turns(before, after))


def _steps(before: DomainAdaptationStatus, after: DomainAdaptationStatus) -> Iterator[Notice]:
    """Stages that succeeded or were started. What one visit did is one Event, since each costs a request: the start
    that follows a success is told with it, and the success that ends all is told by the end."""
    known = {_identity(stage): stage for stage in before.stages}
    done, started = [], []
    for stage in after.stages:
        old = known.get(_identity(stage))
        title = _title(stage.name, stage.candidate)
        if old is None or old.try_number != stage.try_number:
            started.append(f"{title} was started (try {stage.try_number})")
        if stage.state == "Succeeded" and (old is None or old.state != "Succeeded"):
            done.append(f"{title} succeeded")
    if done and not is_true(after.conditions, FINISHED):
        yield Notice(NORMAL, STAGE_SUCCEEDED, "; ".join((*done, *started))[:MAX_MESSAGE])
    elif started:
        yield Notice(NORMAL, STAGE_STARTED, "; ".join(started)[:MAX_MESSAGE])


def _failures(before: Ledger, after: Ledger) -> Iterator[Notice]:
    """Tries whose end is news; one that was asked to stop has not failed."""
    known = {lineage_of(record): record for record in before.runs}
    for record in after.runs:
        old = known.get(lineage_of(record))
        is_news = old is None or (old.state, old.try_number) != (record.state, record.try_number)
        if record.state == "Failed" and is_news and record.cause != Cause.STOPPED:
            said = f": {record.message}" if record.message else ""
            title = _title(record.stage, record.candidate)
            yield Notice(WARNING, STAGE_FAILED, f"{title} failed ({record.cause}){said}"[:MAX_MESSAGE])


def _turns(before: DomainAdaptationStatus, after: DomainAdaptationStatus) -> Iterator[Notice]:
    """A person must act, or it has ended; what ended without a model is told once, as the end."""
    for type_ in (FINISHED, STALLED):
        now, then = find_condition(after.conditions, type_), find_condition(before.conditions, type_)
        if now is None or now.status != "True":
            continue
        if then is None or (then.status, then.reason, then.message) != (now.status, now.reason, now.message):
            yield Notice(EVENTS.get(now.reason, (WARNING, ""))[0], now.reason, now.message[:MAX_MESSAGE])
        if type_ == FINISHED:
            return


def _title(stage: str, candidate: str | None) -> str:
    return f"{stage} of {candidate}" if candidate else stage


def _identity(stage: StageStatus) -> tuple[str, int, str | None]:
    return (stage.name, stage.attempt, stage.candidate)
