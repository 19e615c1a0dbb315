"""Kubernetes Events: a fixed set of reasons, emitted when a status differs from the stored one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dapt_contract.pod.failure import Cause
from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.base import MAX_TEXT
from dapt_operator.api.v1alpha1.conditions import FINISHED, STALLED, find_condition, is_true
from dapt_operator.api.v1alpha1.events import (
    CANDIDATE_SELECTED,
    EVENTS,
    LOSS_SPIKED,
    NORMAL,
    ROLLED_BACK,
    STAGE_FAILED,
    STAGE_STARTED,
    STAGE_SUCCEEDED,
    STEPS_SKIPPED,
    WARNING,
)
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus, StageStatus
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.progress import ProgressStatus
from dapt_operator.plan.stage_parts.attempts import rollback_sentence
from dapt_operator.plan.status.conditions import run_title


@dataclass(frozen=True)
class Notice:
    """One Event."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str
    """At most `MAX_TEXT` characters: the API server takes no more."""


def notices(
    before: DomainAdaptationStatus, after: DomainAdaptationStatus, reported: Ledger | None = None
) -> tuple[Notice, ...]:
    """Return what the second status says and the first did not.

    Args:
        before: as stored.
        after: as it will be.
        reported: the ledger before this reconcile started anything: the next run may hide the end of the one before it.
    """
    events = list(_failures(before.ledger or Ledger(), reported or after.ledger or Ledger()))
    events += _stages(before, after)
    events += _marks(before.progress or ProgressStatus(), after.progress or ProgressStatus())
    num_known = len(before.ledger.attempts) if before.ledger else 0
    for attempt in after.ledger.attempts[num_known:] if after.ledger else ():
        events.append(_notice(WARNING, ROLLED_BACK, rollback_sentence(attempt)))
    if after.selected is not None and after.selected != before.selected:
        message = f"{after.selected.id}: {after.selected.reason}"
        events.append(_notice(NORMAL, CANDIDATE_SELECTED, message))
    return (*events, *_ends(before, after))


def _notice(type_: str, reason: str, message: str) -> Notice:
    return Notice(type_, reason, shortened(message, MAX_TEXT))


def _stages(before: DomainAdaptationStatus, after: DomainAdaptationStatus) -> Iterator[Notice]:
    """Yield stages that succeeded or were started.

    What one reconcile did is one Event, since each costs a request: the start that follows a success is reported with
    it, and the success that ends everything is reported by the end.
    """
    stored = {_identity(stage): stage for stage in before.stages}
    succeeded, started = [], []
    for stage in after.stages:
        old = stored.get(_identity(stage))
        title = run_title(stage.name, stage.candidate)
        if old is None or old.try_number != stage.try_number:
            started.append(f"{title} was started (run {stage.try_number})")
        if stage.state == "Succeeded" and (old is None or old.state != "Succeeded"):
            succeeded.append(f"{title} succeeded")
    if succeeded and not is_true(after.conditions, FINISHED):
        yield _notice(NORMAL, STAGE_SUCCEEDED, "; ".join((*succeeded, *started)))
    elif started:
        yield _notice(NORMAL, STAGE_STARTED, "; ".join(started))


def _failures(before: Ledger, after: Ledger) -> Iterator[Notice]:
    """Yield runs whose failure is new; one whose stop was requested has not failed."""
    stored = {record.stage_key: record for record in before.runs}
    for record in after.runs:
        old = stored.get(record.stage_key)
        is_new = old is None or (old.state, old.try_number) != (record.state, record.try_number)
        if record.state == "Failed" and is_new and record.cause != Cause.STOPPED:
            detail = f": {record.message}" if record.message else ""
            title = run_title(record.stage, record.candidate)
            yield _notice(WARNING, STAGE_FAILED, f"{title} failed ({record.cause}){detail}")


def _marks(before: ProgressStatus, after: ProgressStatus) -> Iterator[Notice]:
    """Yield skipped steps and loss spikes that are new; the trainer stops by itself at too many."""
    place = f"pretrain, up to step {after.step} of {after.total_steps}"
    if (after.skipped_steps or 0) > (before.skipped_steps or 0):
        steps = "step was" if after.skipped_steps == 1 else "steps were"
        yield _notice(
            WARNING,
            STEPS_SKIPPED,
            f"{place}: {after.skipped_steps} {steps} skipped, because loss or gradient was not a number",
        )
    if (after.loss_spikes or 0) > (before.loss_spikes or 0):
        spikes = "spike" if after.loss_spikes == 1 else "spikes"
        yield _notice(
            WARNING,
            LOSS_SPIKED,
            f"{place}: {after.loss_spikes} {spikes} of the training loss, over the mean before by 6 standard "
            "deviations; repeated ones stop the run, and a lower pretraining.optimizer.learningRate avoids them",
        )


def _ends(before: DomainAdaptationStatus, after: DomainAdaptationStatus) -> Iterator[Notice]:
    """Yield required user action, or the end; an end without a model has both conditions and is reported once."""
    for type_ in (FINISHED, STALLED):
        new, old = find_condition(after.conditions, type_), find_condition(before.conditions, type_)
        if new is None or new.status != "True":
            continue
        if old is None or (old.status, old.reason, old.message) != (new.status, new.reason, new.message):
            event_type, _ = EVENTS.get(new.reason, (WARNING, ""))
            yield _notice(event_type, new.reason, new.message)
        if type_ == FINISHED:
            return


def _identity(stage: StageStatus) -> tuple[str, int, str | None]:
    return (stage.name, stage.attempt, stage.candidate)
