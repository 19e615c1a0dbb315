"""Keeps the status under its size limit: what grows is cut in a fixed order, what users need least first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.status import MAX_STATUS_BYTES, DomainAdaptationStatus
from dapt_operator.plan.ledger.compaction import compact_record

SIZE_LIMIT_BYTES: Final = MAX_STATUS_BYTES - 16 * 1024
"""The API server counts its own fields too."""
MAX_SHORT_MESSAGE: Final = 200
MAX_SHORT_STAGE_MESSAGE: Final = 300
MAX_SHORT_CONDITION_MESSAGE: Final = 1000
KEPT_CANDIDATES: Final = 30

Cut = Callable[[DomainAdaptationStatus], DomainAdaptationStatus]


def size_bytes(written: Mapping[str, Any]) -> int:
    """Return the bytes of a status as JSON."""
    return len(json.dumps(written, ensure_ascii=False).encode())


def truncate_status(
    status: DomainAdaptationStatus, written: Mapping[str, Any] | None = None
) -> DomainAdaptationStatus:
    """Return the status itself when it fits, else with as few cuts as make it fit.

    Args:
        status: of any size.
        written: the status as it is written, where the caller has it: writing one takes a tenth of a reconcile.
    """
    written = status.to_dict() if written is None else written
    for cut in CUTS:
        if size_bytes(written) <= SIZE_LIMIT_BYTES:
            break
        status = cut(status)
        written = status.to_dict()
    return status


def _compact_evaluations(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    """Replace the records of finished evaluations by their measures alone."""
    ledger = status.ledger
    for record in ledger.runs if ledger is not None else ():
        if record.kind == "evaluate" and record.has_succeeded and ledger is not None:
            ledger = compact_record(ledger, record)
    return status.with_values(ledger=ledger)


def _shorten_candidates(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    candidates = (
        candidate.with_values(message=shortened(candidate.message, MAX_SHORT_MESSAGE))
        if candidate.message
        else candidate
        for candidate in status.candidates
    )
    return status.with_values(candidates=tuple(candidates))


def _shorten_stages(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    stages = (
        stage.with_values(message=shortened(stage.message, MAX_SHORT_STAGE_MESSAGE))
        if stage.message
        else stage
        for stage in status.stages
    )
    return status.with_values(stages=tuple(stages))


def _shorten_conditions(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    conditions = (
        condition.with_values(message=shortened(condition.message, MAX_SHORT_CONDITION_MESSAGE))
        for condition in status.conditions
    )
    return status.with_values(conditions=tuple(conditions))


def _shorten_records(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    if status.ledger is None:
        return status
    ledger = status.ledger.with_messages(lambda message: shortened(message, MAX_SHORT_MESSAGE))
    return status.with_values(ledger=ledger)


def _drop_older_logs(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    with_lines = [index for index, stage in enumerate(status.stages) if stage.last_log_lines]
    stages = (
        stage.with_values(last_log_lines=()) if index in with_lines[:-1] else stage
        for index, stage in enumerate(status.stages)
    )
    return status.with_values(stages=tuple(stages))


def _drop_tasks_but_of_the_chosen(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    chosen = status.selected.id if status.selected else None
    candidates = (
        candidate if candidate.id == chosen else candidate.with_values(tasks={})
        for candidate in status.candidates
    )
    return status.with_values(candidates=tuple(candidates))


def _drop_older_candidates(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    chosen = status.selected.id if status.selected else None
    older, newest = status.candidates[:-KEPT_CANDIDATES], status.candidates[-KEPT_CANDIDATES:]
    kept = tuple(candidate for candidate in older if candidate.id == chosen)
    return status.with_values(candidates=(*kept, *newest))


CUTS: Final[tuple[Cut, ...]] = (
    _shorten_candidates,
    _drop_older_logs,
    _compact_evaluations,
    _drop_tasks_but_of_the_chosen,
    _shorten_stages,
    _shorten_conditions,
    _drop_older_candidates,
    _shorten_records,
)
"""In this order; what decisions read of the ledger is never cut, only shortened."""
