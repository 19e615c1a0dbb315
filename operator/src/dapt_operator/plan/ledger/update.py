"""Updates the ledger from the runs that exist. Afterwards decisions read the ledger alone.

A closed record never opens again by itself. A lost message or a vanished Job costs one short run: every stage reports
its finished work again without doing it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from dapt_contract.pod.failure import ALTERED_STAGE_FILE, FOREIGN_KEY, Cause
from dapt_contract.sentences import shortened
from dapt_contract.stages.evaluate import EvaluateFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.untrusted.printable import printable
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.profile import Retries
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_bounds import CreatedRun, EndedRun
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord, StageKey
from dapt_operator.plan.ledger.compaction import base_measure, shorten_evaluations, stored_measures
from dapt_operator.plan.ledger.give_up import end_of_given_up
from dapt_operator.plan.ledger.gpu_hours import (
    accelerators_of,
    reached_step,
    seconds_of_vanished,
    seconds_so_far,
)
from dapt_operator.plan.ledger.retries import MOST_RETRIES, AfterFailure, after_failure, not_before
from dapt_operator.plan.stored_status import REREAD
from dapt_operator.stage_run import RunPhase, RunState

MAX_MESSAGE_CHARACTERS: Final = 1024
"""Of a run's message: a status holds 40 of them."""
STOP_EFFECTS: Final = frozenset({Cause.INFRASTRUCTURE, Cause.DISRUPTION, Cause.HANG, Cause.CRASH})
"""Causes by which a run seems to end that was requested to stop: it was killed, or broke off at any point."""
MAX_NAME_CHARACTERS: Final = 60
"""Of a name in a report that a message quotes."""
LOST_AFTER_SECONDS: Final = 10.0
"""A run that was created longer ago and does not exist is lost."""
DISCARDED: Final = "it was created from another spec while the operator was interrupted: it is replaced"

Confirm = Callable[[Ledger, RunState], CreatedRun | None]
"""Returns how a run was created whose creation was not stored, from the ledger as it was then; None when such a run
would not be created now."""


def as_found(ledger: Ledger, run: RunState) -> CreatedRun:  # noqa: ARG001
    """Return what the objects of a run say of its creation."""
    return CreatedRun(
        number=run.identity.try_number,
        fence=run.identity.fence,
        config_digest=run.config_digest,
        generation=0,
        created=timestamp(run.created) if run.created else None,
        accelerators=run.accelerators,
    )


def update_ledger(
    ledger: Ledger,
    runs: Iterable[RunState],
    now: datetime,
    limits: Retries,
    confirm: Confirm | None = as_found,
    *,
    is_suspended: bool = False,
) -> Ledger:
    """Return the ledger with everything that the runs report.

    Args:
        ledger: as stored.
        runs: those that exist; an older run of the same work is ignored.
        now: decides about lost runs and backoff; aware, UTC.
        limits: the profile's retries.
        confirm: tells a run that continues from one that is replaced, where the stored ledger knows neither. None:
            nobody can tell now, so that such a run stays unknown.
        is_suspended: whether Jobs are being removed on purpose.
    """
    ledger = _with_lost_measures(ledger, now)
    records = {record.stage_key: record for record in ledger.runs}
    dropped = ledger.dropped_work()
    newest_numbers: dict[StageKey, int] = {}
    fence = ledger.fence
    # In the order of their creation: the operator may have stopped after it created a run and before it stored the
    # status, and then the end of the run before it was not stored either.
    for run in sorted(runs, key=lambda run: run.identity.fence):
        key, number = run.stage_key, run.identity.try_number
        # Fences rise with the numbers of a work, so the last one seen is its newest.
        newest_numbers[key] = number
        record = records.get(key)
        is_unknown = number > (record.try_number if record is not None else dropped.get(key, 0))
        if is_unknown and confirm is None:
            continue  # nor does its fence count: a run with a fence that was given out before is not taken up later
        # Of runs that were created and not stored too: no later run may get the same fence.
        fence = max(fence, run.identity.fence)
        if is_unknown and confirm is not None:
            # The spec may have been edited since: what was created from another one must not go on unnoticed, nor may
            # its result count.
            created = confirm(ledger.with_records(records.values(), fence), run)
            known = record or RunRecord.before_any_run(key, run.kind)
            if created is None:
                end = end_of_given_up(run, now, DISCARDED)
                records[key] = known.discarding(as_found(ledger, run), end, is_alive=run.is_live)
                continue
            if created.replay_fraction is not None:
                ledger = ledger.with_replay_fraction(created.replay_fraction)
            record = known.opened(created)
        elif record is None:
            continue  # its record was dropped: the run is old, not new
        # An older run of the same work changes nothing: the record is about a newer one.
        if record.is_open and number == record.try_number:
            records[key] = _advanced(record, run, now, limits)
        elif record.has_pods_to_count and number == record.try_number and not run.is_live:
            records[key] = record.outlasted(run.held_seconds(now))
    for key, record in tuple(records.items()):
        # A run that was created a moment ago may not be in the watch's cache yet.
        exists = newest_numbers.get(key, 0) >= record.try_number
        if record.is_open and not exists and (record.is_stop_requested or _is_overdue(record, now)):
            records[key] = _lost(record, now, limits, is_suspended=is_suspended)
        elif record.has_pods_to_count and not exists:
            records[key] = record.outlasted(seconds_of_vanished(record, now))
    return ledger.with_records(records.values(), fence)


def record_ends(
    ledger: Ledger, runs: Iterable[RunState], now: datetime, limits: Retries | None, *, is_suspended: bool
) -> Ledger:
    """Return the ledger with everything that its runs report, while no valid spec says what is to run.

    Whether a run counts that the ledger does not know is known with a spec alone: it waits for the next one.

    Args:
        ledger: as stored.
        runs: those that exist.
        now: decides about lost runs and backoff; aware, UTC.
        limits: the profile's retries; None while there is no valid profile.
        is_suspended: whether Jobs are being removed on purpose.
    """
    return shorten_evaluations(
        update_ledger(ledger, runs, now, limits or MOST_RETRIES, None, is_suspended=is_suspended)
    )


def _with_lost_measures(ledger: Ledger, now: datetime) -> Ledger:
    """Return the ledger with evaluations due again whose short measure cannot be read.

    Nothing of ours writes one; a status that was edited by hand or restored in part may hold it.
    """
    shortened_ones = [
        record
        for record in ledger.runs
        if record.kind == "evaluate" and record.has_succeeded and record.facts is None
    ]
    base = base_measure(ledger) if shortened_ones else None
    if base is None:
        return ledger
    readable = stored_measures(ledger, base)
    for record in shortened_ones:
        if record.candidate not in readable:
            ledger = ledger.with_record(record.lost(timestamp(now), Cause.DISRUPTION, REREAD))
    return ledger


def request_stop(ledger: Ledger, runs: Iterable[RunState], now: datetime) -> Ledger:
    """Return the ledger with a stop request on the newest of these runs, and what each has cost so far.

    The runs are deleted because of spec.suspend or a used-up budget. Their pods may be gone before their report is
    read, and by then the spec may be resumed: without the note, such an end would look like a fault.
    """
    for run in runs:
        record = ledger.find(*run.stage_key)
        if (
            record is None
            or not record.is_open
            or record.is_stop_requested
            or not record.is_about(run.identity)
        ):
            continue
        stopping = record.stop_requested(held_seconds=run.held_seconds(now), accelerators=run.accelerators)
        ledger = ledger.with_record(stopping)
    return ledger


def _advanced(record: RunRecord, run: RunState, now: datetime, limits: Retries) -> RunRecord:
    """Return the record of a run that exists, open or closed."""
    if run.is_live:
        started = record.running_since(
            timestamp(run.started) if run.started else None, run.object_uid or None, run.child_uid or None
        )
        return _with_early_checkpoints(started, run)
    # Pods that are gone take their start with them: what was noted while they ran stays.
    held_seconds = seconds_so_far(record, run, now)
    end = EndedRun(
        completed=timestamp(run.completed or now),
        started=timestamp(run.started) if run.started else None,
        exit_code=run.exit_code,
        message=shortened(printable(run.message), MAX_MESSAGE_CHARACTERS),
        accelerator_seconds=accelerators_of(record, run) * held_seconds,
        held_seconds=held_seconds,
        facts=run.facts,
    )
    if run.phase is RunPhase.FAILED:
        return _failed(record, run, end, now, limits)
    if isinstance(run.facts, EvaluateFacts) and run.facts.candidate != record.candidate:
        # Kept under that name, it would leave this candidate without a measure and without a further run.
        name = shortened(printable(run.facts.candidate), MAX_NAME_CHARACTERS)
        message = f"its report is about candidate '{name}' and not about {record.candidate}"
        return _failed(
            record, replace(run, facts=None), replace(end, message=message, facts=None), now, limits
        )
    if run.facts is None:
        message = "it succeeded and its message was lost: a short run reads the report again"
        after = _after_disruption(record, reached_step(run), limits)
        closed = record.failed(
            replace(end, message=message),
            Cause.DISRUPTION,
            retry=after.retry,
            not_before=not_before(now, after),
        )
        return _counted(closed, after, reached_step(run))
    return record.succeeded(end)


def _failed(record: RunRecord, run: RunState, end: EndedRun, now: datetime, limits: Retries) -> RunRecord:
    cause, step = run.cause or Cause.CRASH, max(reached_step(run), _seen_step(record))
    # A run that was requested to stop and did not save in time is killed by whoever requested it.
    if record.is_stop_requested and cause in STOP_EFFECTS:
        cause = Cause.STOPPED
    after = after_failure(
        record,
        cause,
        limits,
        has_gained_step=step > record.step,
        has_facts=run.facts is not None,
        is_altered=any(text in run.message for text in (ALTERED_STAGE_FILE, FOREIGN_KEY)),
    )
    closed = record.failed(end, cause, retry=after.retry, not_before=not_before(now, after))
    return _counted(closed, after, step)


def _counted(closed: RunRecord, after: AfterFailure, step: int) -> RunRecord:
    """Return the record of a failed run with what follows from its failure."""
    return closed.counting_failure(
        after.budget,
        stuck=after.stuck,
        disruptions=after.disruptions,
        step=step,
        is_halved=after.halve and after.retry,
    )


def _after_disruption(record: RunRecord, step: int, limits: Retries) -> AfterFailure:
    return after_failure(record, Cause.DISRUPTION, limits, has_gained_step=step > record.step)


def _with_early_checkpoints(record: RunRecord, run: RunState) -> RunRecord:
    """Return the record of a running pretraining with the complete checkpoints that its last reading reports.

    They are kept: a reading that is lost afterwards only delays what is not known yet. The report at the end of the run
    replaces them.
    """
    rows = run.progress.checkpoints if run.progress is not None and run.kind == "pretrain" else ()
    if not rows:
        return record
    facts = record.parsed_facts()
    if not isinstance(facts, PretrainFacts):
        facts = PretrainFacts(ended_by="Stopped", steps=0, tokens=0, checkpoints=())
    merged = facts.with_checkpoints(rows)
    return record if merged is facts else record.with_facts(merged)


def _lost(record: RunRecord, now: datetime, limits: Retries, *, is_suspended: bool) -> RunRecord:
    """Return the record of a run that is gone without a report."""
    held_seconds = seconds_of_vanished(record, now)
    if is_suspended or record.is_stop_requested:
        message = "stopped by spec.suspend" if is_suspended else "its stop was requested"
        return record.lost(timestamp(now), Cause.STOPPED, message, held_seconds=held_seconds)
    # How it ended is unknown. That Jobs are deleted from outside is no fault of the stage.
    step = _seen_step(record)
    after = _after_disruption(record, step, limits)
    lost = record.lost(
        timestamp(now),
        Cause.DISRUPTION,
        "its Job is gone",
        held_seconds=held_seconds,
        retry=after.retry,
        not_before=not_before(now, after),
    )
    return _counted(lost, after, step)


def _seen_step(record: RunRecord) -> int:
    """Return the largest step that is known of the newest run, by its readings and its complete checkpoints."""
    facts = record.parsed_facts() if record.kind == "pretrain" else None
    checkpoints = facts.checkpoints if isinstance(facts, PretrainFacts) else ()
    return max((record.seen_step or 0, *(row.step for row in checkpoints)))


def _is_overdue(record: RunRecord, now: datetime) -> bool:
    if record.created is None:
        return True
    return now - datetime.fromisoformat(record.created) > timedelta(seconds=LOST_AFTER_SECONDS)
