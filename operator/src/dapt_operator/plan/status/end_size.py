"""Reduces the status of what has finished to its tables: nothing is decided from it any more, and it stays for months.

A thousand finished adaptations are in the memory of the operator and of the API server. Everything that goes is in the
reports on the work volume, which `dapt report` reads.
"""

from __future__ import annotations

from typing import Final

from dapt_contract.sentences import shortened
from dapt_operator.api.v1alpha1.status import CandidateStatus, DomainAdaptationStatus
from dapt_operator.plan.ledger.compaction import keep_tables
from dapt_operator.plan.status.size_limit import MAX_SHORT_STAGE_MESSAGE

CANDIDATES_WITH_SCORES: Final = 2
"""The chosen candidate and the next best one keep their score by task; all others keep their row without it."""


def reduce_to_tables(status: DomainAdaptationStatus) -> DomainAdaptationStatus:
    """Return the status of what has finished in its final size; the status itself when it has that already."""
    ledger = status.ledger
    if ledger is None or ledger.has_tables_only:
        return status
    chosen = status.selected.id if status.selected else None
    return status.with_values(
        candidates=_with_few_scores(status.candidates, chosen),
        stages=tuple(
            stage.with_values(message=shortened(stage.message, MAX_SHORT_STAGE_MESSAGE))
            if stage.message
            else stage
            for stage in status.stages
        ),
        ledger=keep_tables(ledger, chosen),
    )


def _with_few_scores(
    candidates: tuple[CandidateStatus, ...], chosen: str | None
) -> tuple[CandidateStatus, ...]:
    def rank(candidate: CandidateStatus) -> tuple[bool, float]:
        return (candidate.id != chosen, -(candidate.whole_gain or 0.0))

    scored = sorted((candidate for candidate in candidates if candidate.tasks), key=rank)
    kept = {candidate.id for candidate in scored[:CANDIDATES_WITH_SCORES]}
    return tuple(
        candidate if candidate.id in kept or not candidate.tasks else candidate.with_values(tasks={})
        for candidate in candidates
    )
