"""A status has room for so much: what grows is cut in a fixed order, least needed first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from dapt_operator.api.v1alpha1.ledger import RunRecord
from dapt_operator.api.v1alpha1.status import MAX_STATUS_BYTES, DomainAdaptationStatus
from dapt_operator.plan.ledger.compaction import compact_record

ROOM_BYTES: Final = MAX_STATUS_BYTES - 16 * 1024
"""The API server counts its own fields too."""

Cut = Callable[[DomainAdaptationStatus], DomainAdaptationStatus]


def size_bytes(written: Mapping[str, Any]) -> int:
    """Bytes of a status as JSON."""
    return len(json.dumps(written, ensure_ascii=False).encode())


def truncate_status(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    """The status itself when it fits, else with as few cuts as do."""
    for cut in CUTS:
        if size_bytes(status.to_dict()) <= ROOM_BYTES:
            break
        status = cut(status)
    return status


def _evaluations(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    """Finished evaluations are kept in short."""
    ledger = status.ledger
    for record in ledger.runs if ledger is not None else ():
        if record.kind == "evaluate" and record.state == "Succeeded" and ledger is not None:
            ledger = compact_record(ledger, record)
    return status.model_copy(update={"ledger": ledger})


def _short(text: str | None, most: int) -> str | None:
    return text if text is None or len(text) <= most else text[: most - 3] + "..."


def _candidates_words(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    short = (one.model_copy(update={"message": _short(one.message, 200)}) for one in status.candidates)
    return status.model_copy(update={"candidates": tuple(short)})


def _stages_words(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    short = (one.model_copy(update={"message": _short(one.message, 300)}) for one in status.stages)
    return status.model_copy(update={"stages": tuple(short)})


def _older_logs(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    with_lines = [index for index, one in enumerate(status.stages) if one.last_log_lines]
    stages = (
        one.model_copy(update={"last_log_lines": ()}) if index in with_lines[:-1] else one
        for index, one in enumerate(status.stages)
    )
    return status.model_copy(update={"stages": tuple(stages)})


def _others_tasks(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    chosen = status.selected.id if status.selected else None
    kept = (one if one.id == chosen else one.model_copy(update={"tasks": {}}) for one in status.candidates)
    return status.model_copy(update={"candidates": tuple(kept)})


def _conditions_words(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    short = (one.model_copy(update={"message": _short(one.message, 1000)}) for one in status.conditions)
    return status.model_copy(update={"conditions": tuple(short)})


def _older_candidates(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    chosen = status.selected.id if status.selected else None
    newest = status.candidates[-30:]
    kept = tuple(one for one in status.candidates[:-30] if one.id == chosen)
    return status.model_copy(update={"candidates": (*kept, *newest)})


def _records_words(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    if status.ledger is None:
        return status

    def short(record: RunRecord) -> RunRecord:
        return record.model_copy(update={"message": _short(record.message, 200)})

    runs = tuple(short(record) for record in status.ledger.runs)
    return status.model_copy(update={"ledger": status.ledger.model_copy(update={"runs": runs})})


CUTS: Final[tuple[Cut, ...]] = (
    _candidates_words,
    _older_logs,
    _evaluations,
    _others_tasks,
    _stages_words,
    _conditions_words,
    _older_candidates,
    _records_words,
)
"""In this order; what decisions read of the ledger is never cut, only shortened."""
