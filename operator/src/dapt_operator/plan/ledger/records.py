"""What the ledger learns from the runs that are there. Afterwards decisions read the ledger alone.

A closed record never opens again by itself, and a lost message or a vanished Job costs one short try: every stage
re-emits the finished report of its own work.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import ValidationError

from dapt_contract.base import Contract
from dapt_contract.failure import Cause
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stages import KINDS
from dapt_operator.api.v1alpha1.ledger import Ledger, RunRecord
from dapt_operator.stage_run import RunState

Lineage = tuple[str, int, str | None]


def lineage_of(value: RunRecord | RunIdentity) -> Lineage:
    """Stage, attempt and candidate."""
    return (value.stage, value.attempt, value.candidate)


def find(ledger: Ledger, stage: str, attempt: int, candidate: str | None) -> RunRecord | None:
    """The record of a lineage."""
    return next((r for r in ledger.runs if lineage_of(r) == (stage, attempt, candidate)), None)


def find_state(runs: Iterable[RunState], record: RunRecord) -> RunState | None:
    """What is observed of a record's newest try."""
    wanted = (lineage_of(record), record.try_number)
    return next((run for run in runs if (lineage_of(run.identity), run.identity.try_number) == wanted), None)


def put(ledger: Ledger, record: RunRecord) -> Ledger:
    """The ledger with this record replaced or added."""
    known = any(lineage_of(old) == lineage_of(record) for old in ledger.runs)
    runs = (
        tuple(record if lineage_of(old) == lineage_of(record) else old for old in ledger.runs)
        if known
        else (*ledger.runs, record)
    )
    return ledger.model_copy(update={"runs": runs, "fence": max(ledger.fence, record.fence)})


def facts_of(record: RunRecord | None) -> Contract | None:
    """Facts of a record as their own model; None when there are none or they do not fit."""
    if record is None or record.facts is None:
        return None
    try:
        return KINDS[record.kind].facts.model_validate(record.facts)
    except ValidationError:
        return None


def was_asked_to_stop(record: RunRecord) -> bool:
    """Whether an open try goes because it was asked to."""
    return record.state == "Open" and record.cause == Cause.STOPPED.value


def printable(text: str) -> str:
    """One line without control characters: it comes from a tenant's pod."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def accelerator_seconds(run: RunState, now: datetime) -> float:
    """Accelerators held times seconds held so far."""
    return run.accelerators * held_seconds(run, now)


def held_seconds(run: RunState, now: datetime) -> float:
    """Seconds from the first process' start to the end, or until now."""
    if run.started is None:
        return 0.0
    return max(0.0, ((run.completed or now) - run.started).total_seconds())


def compact(facts: Contract) -> dict[str, object]:
    """As the termination message spells facts: what was read from one comes out unchanged."""
    values: dict[str, object] = facts.model_dump(
        mode="json", exclude_none=True, exclude_defaults=True, context={"compact": True}
    )
    return values
