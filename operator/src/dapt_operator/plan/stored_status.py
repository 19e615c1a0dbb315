"""Reads a stored status as far as it can be read.

A status may be one that this version did not write: after a downgrade, an edit by hand, a restored backup. What does
not fit its model is left out, the smallest part that is enough, and everything else counts. Nothing that is left out is
lost for good: a run that the ledger does not know is found by its name, and a finished stage reports again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dapt_contract.pod.failure import Cause
from dapt_contract.sentences import shortened
from dapt_contract.stages import KINDS
from dapt_operator.api.v1alpha1.base import MAX_TEXT
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus
from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord, Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.stage_run import plain

MAX_ROUNDS: Final = 50
"""Each leaves something out, so only a status that is wrong all over needs more."""
REREAD: Final = "its facts in the status could not be read: a short run reads the report again"
NEVER: Final = "1970-01-01T00:00:00Z"
"""Time of the end of a record that has none."""
TOO_LONG: Final = ("too_long", "string_too_long")

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class StoredStatus:
    """A status, and what had to be left out of it."""

    model: DomainAdaptationStatus
    left_out: tuple[str, ...] = ()
    """One sentence for each part."""


def read_stored_status(stored: object) -> StoredStatus:
    """Return the status that a stored one can be read as; an empty one where nothing of it can be read."""
    model, left_out = _readable(stored)
    if model.ledger is None and not left_out:
        return StoredStatus(model)
    ledger = model.ledger or Ledger()
    mended, repairs = _mended(ledger)
    left_out = (*left_out, *repairs)
    if left_out:
        mended = mended.with_unreadable(left_out)
    return StoredStatus(model if mended is ledger else model.with_values(ledger=mended), left_out)


def _readable(stored: object) -> tuple[DomainAdaptationStatus, tuple[str, ...]]:
    try:
        return DomainAdaptationStatus.model_validate(stored), ()
    except ValidationError:
        rest = plain(stored)
    left_out: dict[str, None] = {}
    for _ in range(MAX_ROUNDS):
        try:
            return DomainAdaptationStatus.model_validate(rest), tuple(left_out)
        except ValidationError as error:
            problems = _places(rest, error)
            if not problems:
                break
            # From the back, so that the places of what is still to be left out stay.
            for place in sorted(problems, key=_order, reverse=True):
                left_out[_leave_out(rest, place, problems[place])] = None
    return DomainAdaptationStatus(ledger=Ledger()), ("the whole status",)


def _places(rest: object, error: ValidationError) -> dict[Place, ErrorDetails]:
    """Return the parts to leave out, each with a problem of it: the part itself, or what lacks a required one."""
    places: dict[Place, ErrorDetails] = {}
    for problem in error.errors(include_url=False):
        place = problem["loc"]
        while place and not _exists(rest, place):
            place = place[:-1]
        if place:
            places[place] = problem
    # Of a part that goes as a whole nothing else is to be done.
    return {
        place: problem
        for place, problem in places.items()
        if not any(place[:length] in places for length in range(1, len(place)))
    }


def _order(place: Place) -> tuple[tuple[str, int], ...]:
    return tuple(("", part) if isinstance(part, int) else (part, 0) for part in place)


def _exists(rest: object, place: Place) -> bool:
    holder = _holder(rest, place)
    if isinstance(holder, list):
        return isinstance(place[-1], int) and place[-1] < len(holder)
    return isinstance(holder, dict) and place[-1] in holder


def _holder(rest: object, place: Place) -> Any:
    """Return the object or list that a place is in; None where there is none."""
    for part in place[:-1]:
        if isinstance(rest, dict):
            rest = rest.get(part)
        elif isinstance(rest, list) and isinstance(part, int) and part < len(rest):
            rest = rest[part]
        else:
            return None
    return rest


def _leave_out(rest: object, place: Place, problem: ErrorDetails) -> str:
    """Remove a part, or what is too long of it; return what was removed and why."""
    holder, key = _holder(rest, place), place[-1]
    most = problem.get("ctx", {}).get("max_length")
    if problem["type"] in TOO_LONG and place == problem["loc"] and isinstance(most, int):
        # The newest records are the last ones; of a text the beginning says what it is.
        holder[key] = holder[key][-most:] if isinstance(holder[key], list) else holder[key][:most]
    else:
        del holder[key]
    return shortened(f"{'.'.join(str(part) for part in place)}: {problem['msg']}", MAX_TEXT)


def _mended(ledger: Ledger) -> tuple[Ledger, tuple[str, ...]]:
    """Return the ledger without what fits its model and still cannot be."""
    attempts, repairs = _consecutive(ledger.attempts)
    if attempts != ledger.attempts:
        ledger = ledger.with_values(attempts=attempts)
    known = _one_of_each(ledger.runs)
    if len(known) < len(ledger.runs):
        repairs += ("ledger.runs: two records of the same work",)
    # Fences begin with 1: a run without one is found by its name, with the fence that its objects have.
    repairs += tuple(f"ledger.runs: {record.stage} has fence 0" for record in known if record.fence < 1)
    known = tuple(record for record in known if record.fence >= 1)
    # A stage is named after its kind. With another one its facts could be read neither now nor after a further run.
    misnamed = [record for record in known if record.stage in KINDS and record.kind != record.stage]
    repairs += tuple(f"ledger.runs: {record.stage} has another kind" for record in misnamed)
    known = tuple(record.with_values(kind=record.stage) if record in misnamed else record for record in known)
    runs = tuple(_mended_record(ledger, record) for record in known)
    repairs += tuple(f"{new.stage}: {REREAD}" for new, old in zip(runs, known, strict=True) if new is not old)
    return (ledger.with_values(runs=runs) if runs != ledger.runs else ledger), repairs


def _consecutive(attempts: tuple[AttemptRecord, ...]) -> tuple[tuple[AttemptRecord, ...], tuple[str, ...]]:
    """Return the attempts up to the first gap: what stands in a later one's place would be taken for another."""
    for index, attempt in enumerate(attempts):
        if attempt.number != index + 2:
            return attempts[:index], (f"ledger.attempts.{index}: it is numbered {attempt.number}",)
    return attempts, ()


def _one_of_each(records: tuple[RunRecord, ...]) -> tuple[RunRecord, ...]:
    """Return the last record of each piece of work."""
    by_key = {record.stage_key: record for record in records}
    return tuple(by_key.values()) if len(by_key) < len(records) else records


def _mended_record(ledger: Ledger, record: RunRecord) -> RunRecord:
    """Return the record as one whose message was lost, where decisions need facts of it that cannot be read."""
    if not record.has_succeeded or record.kind not in KINDS or ledger.has_tables_only:
        return record
    if record.kind == "evaluate" and any(
        measure.candidate == record.candidate for measure in ledger.measures
    ):
        return record
    if record.parsed_facts() is not None:
        return record
    return record.lost(record.completed or record.created or NEVER, Cause.DISRUPTION, REREAD)
