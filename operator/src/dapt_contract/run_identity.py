"""Identity of a run: what is the same work, which try of it, and who may write.

Run key = (resource uid, stage, attempt, candidate, try). A *lineage* is the run key without the try: all tries of a
lineage share one folder, each writes only below its own `try-N/`, and the newest fencing number wins.
"""

from __future__ import annotations

import hashlib

from pydantic import Field

from dapt_contract.base import Contract


class RunIdentity(Contract):
    """Names one try of one stage of one attempt of one adaptation."""

    namespace: str
    name: str
    """Of the DomainAdaptation."""
    uid: str
    """Of the DomainAdaptation, so that a resource created anew never finds its predecessor's work."""
    stage: str
    """For example `pretrain`; the name in status.stages."""
    attempt: int = Field(ge=1)
    candidate: str | None = None
    try_number: int = Field(ge=1)
    fence: int = Field(ge=1)
    """Rises with every run of the adaptation; a checkpoint manifest below the newest claim is refused."""

    @property
    def lineage(self) -> str:
        """Stage, attempt and candidate: the name of the folder that all tries share."""
        parts = [self.stage, f"a{self.attempt}"] + ([self.candidate] if self.candidate else [])
        return "-".join(parts)

    @property
    def key(self) -> str:
        """SHA-256 in hexadecimal of everything that makes this run this run."""
        text = "\n".join(
            [self.uid, self.stage, str(self.attempt), self.candidate or "", str(self.try_number)]
        )
        return hashlib.sha256(text.encode()).hexdigest()
