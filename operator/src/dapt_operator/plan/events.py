"""Kubernetes Events: a fixed set, told when a status says something new."""

from __future__ import annotations

from dataclasses import dataclass

from dapt_operator.api.conditions import FINISHED, STALLED, find_condition
from dapt_operator.api.status import DomainAdaptationStatus, StageStatus

STAGE_STARTED = "StageStarted"
STAGE_SUCCEEDED = "StageSucceeded"
STAGE_FAILED = "StageFailed"
CANDIDATE_SELECTED = "CandidateSelected"


@dataclass(frozen=True)
class Notice:
    """One Event."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


def notices(before: DomainAdaptationStatus, after: DomainAdaptationStatus) -> tuple[Notice, ...]:
    """What the second status tells that the first did not."""
    found: list[Notice] = []
    known = {_identity(stage): stage for stage in before.stages}
    for stage in after.stages:
        old = known.get(_identity(stage))
        title = f"{stage.name} of {stage.candidate}" if stage.candidate else stage.name
        if old is None or old.try_number != stage.try_number:
            found.append(Notice("Normal", STAGE_STARTED, f"{title} was started (try {stage.try_number})"))
        if old is None or (old.state, old.try_number) != (stage.state, stage.try_number):
            if stage.state == "Succeeded":
                found.append(Notice("Normal", STAGE_SUCCEEDED, f"{title} succeeded"))
            if stage.state == "Failed":
                said = f": {stage.message}" if stage.message else ""
                found.append(Notice("Warning", STAGE_FAILED, f"{title} failed ({stage.reason}){said}"[:1024]))
    if after.selected is not None and after.selected != before.selected:
        found.append(
            Notice("Normal", CANDIDATE_SELECTED, f"{after.selected.id}: {after.selected.reason}"[:1024])
        )
    for type_, kind in ((STALLED, "Warning"), (FINISHED, "Normal")):
        now, then = find_condition(after.conditions, type_), find_condition(before.conditions, type_)
        if now is None or now.status != "True":
            continue
        if then is None or (then.status, then.reason, then.message) != (now.status, now.reason, now.message):
            found.append(Notice(kind, now.reason, now.message[:1024]))
    return tuple(found)


def _identity(stage: StageStatus) -> tuple[str, int, str | None]:
    return (stage.name, stage.attempt, stage.candidate)
