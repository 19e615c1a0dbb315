"""Compares the status as it should be with the stored one, without writing either as text.

Nearly every reconcile ends with this comparison, and nearly always nothing has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dapt_operator.api.v1alpha1.status import CandidateStatus, DomainAdaptationStatus, StageStatus
from dapt_operator.remembered import remembered

_CACHED_PAIRS: Final = 128
_LONG_LISTS: Final = ("candidates", "stages")

Row = CandidateStatus | StageStatus


def is_equal(status: DomainAdaptationStatus, stored: DomainAdaptationStatus) -> bool:
    """Whether two statuses have equal values. False does not mean that they are written differently."""
    return _have_equal_rows(status.stages, stored.stages) and (
        _have_equal_rows(status.candidates, stored.candidates)
        and all(
            getattr(status, name) == getattr(stored, name)
            for name in DomainAdaptationStatus.model_fields
            if name not in _LONG_LISTS
        )
    )


def _have_equal_rows(rows: Sequence[Row], stored: Sequence[Row]) -> bool:
    return len(rows) == len(stored) and all(map(_is_equal_row, rows, stored))


# Rows are cached, as the stored ones are: the same two are compared at every reconcile.
@remembered(_CACHED_PAIRS)
def _is_equal_row(row: Row, stored: Row) -> bool:
    return row == stored
