"""What a local run may be refused for, and the time in Kubernetes' spelling."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime


class LocalRunError(ValueError):
    """The local run cannot start or go on as asked; one sentence a problem. A retry does not help."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


def timestamp(moment: datetime | None = None) -> str:
    """RFC 3339 in UTC with microseconds, as the local adapter's objects carry it."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
