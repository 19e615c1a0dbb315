"""What the ledger learns from the runs that are there. Afterwards decisions read the ledger alone.

A closed record never opens again by itself, and a lost message or a vanished Job costs one short try: every stage
re-emits the finished report of its own work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

from dapt_contract.failure import ALTERED, Cause
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.api.v1alpha1.profile import Retries
from dapt_operator.plan.ledger.records import (
    Lineage,
    accelerator_seconds,
    compact,
    facts_of,
    find,
    held_seconds,
    lineage_of,
    printable,
    put,
    was_asked_to_stop,
)
from dapt_operator.plan.ledger.retries import after_failure, not_before
from dapt_operator.stage_run import RunPhase, RunState

MAX_MESSAGE = 1024
"""Characters of a run's sentence that are remembered: a status has room for 40 of them."""
MAX_ROWS = 50
"""Checkpoints of an attempt."""
LOST_AFTER_SECONDS = 10.0
"""A run that was created longer ago and is not seen is gone."""
NONE_CLOSED: Final[Mapping[Lineage, int]] = {}


def absorb(
    ledger: Ledger,
    runs: Iterable[RunState],
    now: datetime,
    limits: Retries,
    generation: int,
    *,
    suspended: bool = False,
    closed: Mapping[Lineage, int] = NONE_CLOSED,
) -> Ledger:
    """Fold the runs into the ledger.

    Args:
        ledger: as stored.
        runs: what is there now; older tries of a lineage are ignored.
        now: for lost runs and backoff.
        limits: the profile's retries.
        generation: of the spec.
        suspended: whether Jobs are being taken away on purpose.
        closed: tries of the lineages whose records were let go.
    """
    newest: dict[Lineage, int] = {}
    records = {lineage_of(record): record for record in ledger.runs}
    fence = ledger.fence
    for run in sorted(runs, key=lambda run: run.identity.fence):
        # in the order of their creation: when a try was created and not written down, the end of the one before it
        # may not have been either
        lineage = lineage_of(run.identity)
        newest[lineage] = run.identity.try_number
        fence = max(fence, run.identity.fence)
        record = records.get(lineage)
        if record is None and run.identity.try_number <= closed.get(lineage, 0):
            continue  # its record was let go
        if record is None or run.identity.try_number > record.try_number:
            record = adopted(record, run, generation)
        if record.state == "Open" and run.identity.try_number == record.try_number:
            records[lineage] = _advanced(record, run, now, limits)
    ledger = ledger.model_copy(update={"runs": tuple(records.values()), "fence": fence})
    for record in ledger.runs:
        is_there = newest.get(lineage_of(record), 0) >= record.try_number
        if record.state == "Open" and not is_there and (was_asked_to_stop(record) or _is_lost(record, now)):
            ledger = put(ledger, _closed_as_lost(record, now, suspended))
    return ledger


def ask_to_stop(ledger: Ledger, runs: Iterable[RunState], now: datetime) -> Ledger:
    """Remember that these runs go because of spec.suspend or a used-up budget, and what they have cost: their pods may
    be gone before what they said is read, and the spec may be resumed by then."""
    for run in runs:
        record = find(ledger, *lineage_of(run.identity))
        is_newest = record is not None and record.try_number == run.identity.try_number
        if record is not None and is_newest and record.state == "Open" and not was_asked_to_stop(record):
            asked = {"asked_seconds": held_seconds(run, now), "held": run.accelerators}
            ledger = put(ledger, record.model_copy(update={"cause": Cause.STOPPED.value, **asked}))
    return ledger


def adopted(record: RunRecord | None, run: RunState, generation: int) -> RunRecord:
    """The record of a try whose creation was not written down before the operator stopped."""
    identity = run.identity
    fresh: dict[str, object] = {
        "try_number": identity.try_number,
        "fence": identity.fence,
        "state": "Open",
        "retry": False,
        "cause": None,
        "exit_code": None,
        "message": "",
        "config_digest": run.config_digest,
        "generation": generation,
        "profile_digest": None,
        "created": timestamp(run.created) if run.created else None,
        "started": None,
        "completed": None,
        "not_before": None,
        "asked_seconds": None,
        "held": None,
    }
    if record is not None:
        if record.cause not in (None, Cause.STOPPED.value):
            fresh["restarts"] = record.restarts + 1
        return record.model_copy(update=fresh)
    return RunRecord(
        stage=identity.stage, kind=run.kind, attempt=identity.attempt, candidate=identity.candidate,
        fence=identity.fence,
    ).model_copy(update=fresh)  # fmt: skip


def _advanced(record: RunRecord, run: RunState, now: datetime, limits: Retries) -> RunRecord:
    started = timestamp(run.started) if run.started else record.started
    if run.phase in (RunPhase.PENDING, RunPhase.RUNNING):
        return learned_early(record.model_copy(update={"started": started}), run)
    completed = run.completed or now
    closed = record.model_copy(
        update={
            "asked_seconds": None,
            "held": None,
            "started": started,
            "completed": timestamp(completed),
            "exit_code": run.exit_code,
            "message": printable(run.message)[:MAX_MESSAGE],
            "accelerator_seconds": record.accelerator_seconds + accelerator_seconds(run, now),
            "held_seconds": (record.held_seconds or 0.0) + held_seconds(run, now),
            "facts": compact(run.facts) if run.facts is not None else record.facts,
        }
    )
    if run.phase is RunPhase.SUCCEEDED:
        if run.facts is None:
            return closed.model_copy(
                update={
                    "state": "Failed",
                    "retry": True,
                    "cause": Cause.DISRUPTION.value,
                    "message": "it succeeded and its message was lost: a short try reads the report again",
                }
            )
        return closed.model_copy(update={"state": "Succeeded", "cause": None, "retry": False})
    cause = run.cause or Cause.CRASH
    reached = _step(run)
    gained = reached > record.step
    after = after_failure(
        record, cause, limits, gained=gained, has_facts=run.facts is not None, altered=ALTERED in run.message
    )
    failures = dict(record.failures)
    if after.budget:
        failures[after.budget] = failures.get(after.budget, 0) + 1
    return closed.model_copy(
        update={
            "state": "Failed",
            "retry": after.retry,
            "cause": cause.value,
            "failures": failures,
            "stuck": after.stuck,
            "step": max(record.step, reached),
            "halvings": record.halvings + (1 if after.halve and after.retry else 0),
            "not_before": not_before(now, after),
        }
    )


def learned_early(record: RunRecord, run: RunState) -> RunRecord:
    """The record of a running pretraining with the complete checkpoints that its last reading told of.

    They are kept: a reading that is lost afterwards only delays what is not known yet. What the run says at its end
    replaces them.
    """
    rows = run.progress.checkpoints if run.progress is not None and run.kind == "pretrain" else ()
    if not rows:
        return record
    known = facts_of(record)
    if not isinstance(known, PretrainFacts):
        known = PretrainFacts(ended_by="Stopped", steps=0, tokens=0, checkpoints=())
    by_step = {row.step: row for row in (*known.checkpoints, *rows)}
    table = tuple(by_step[step] for step in sorted(by_step))[-MAX_ROWS:]
    if table == known.checkpoints:
        return record
    return record.model_copy(update={"facts": compact(known.model_copy(update={"checkpoints": table}))})


def _closed_as_lost(record: RunRecord, now: datetime, suspended: bool) -> RunRecord:
    cause, said = Cause.DISRUPTION, "its Job is gone"
    if suspended or was_asked_to_stop(record):
        cause, said = Cause.STOPPED, "stopped by spec.suspend" if suspended else "it was asked to stop"
    seconds = record.asked_seconds or 0.0
    return record.model_copy(
        update={
            "state": "Failed",
            "retry": True,
            "cause": cause.value,
            "message": said,
            "completed": timestamp(now),
            "accelerator_seconds": record.accelerator_seconds + seconds * (record.held or 0),
            "held_seconds": (record.held_seconds or 0.0) + seconds if seconds else record.held_seconds,
            "asked_seconds": None,
            "held": None,
        }
    )


def _is_lost(record: RunRecord, now: datetime) -> bool:
    if record.created is None:
        return True
    return now - datetime.fromisoformat(record.created) > timedelta(seconds=LOST_AFTER_SECONDS)


def _step(run: RunState) -> int:
    reached = getattr(run.facts, "steps", 0) if run.kind == "pretrain" else 0
    live = run.progress.step if run.progress is not None and run.progress.step is not None else 0
    return max(int(reached), live)
