"""Identifies a run: which work it does, which run of that work it is, and which of several runs may write.

A run key is made of the resource's uid, stage, attempt, candidate and try number. A *lineage* is the same without the
try number: all runs of a lineage do the same work and share one folder, each writes only below its own `try-N/`, and
the newest fencing number wins.
"""

import hashlib

from pydantic import Field

from dapt_contract.base import Contract


def lineage_name(stage: str, attempt: int, candidate: str | None = None) -> str:
    """Return stage, attempt and candidate as one name, for example `evaluate-a1-a1-s40`."""
    return "-".join((stage, f"a{attempt}", *((candidate,) if candidate else ())))


class RunIdentity(Contract):
    """Identifies one run of one stage of one attempt of one adaptation."""

    namespace: str
    name: str
    """Name of the DomainAdaptation."""
    uid: str
    """Uid of the DomainAdaptation, so that a resource of the same name created later never uses this one's work."""
    stage: str
    """For example `pretrain`; the name in status.stages."""
    attempt: int = Field(ge=1)
    candidate: str | None = None
    try_number: int = Field(ge=1)
    """Counts the runs of a lineage from 1."""
    fence: int = Field(ge=1)
    """Rises with every run of the adaptation; a checkpoint manifest below the newest claim is refused."""

    @property
    def lineage(self) -> str:
        """Return stage, attempt and candidate: the name of the folder that all runs of the work share."""
        return lineage_name(self.stage, self.attempt, self.candidate)

    @property
    def key(self) -> str:
        """Return the hexadecimal SHA-256 over the parts of the run key."""
        text = "\n".join(
            [self.uid, self.stage, str(self.attempt), self.candidate or "", str(self.try_number)]
        )
        return hashlib.sha256(text.encode()).hexdigest()
