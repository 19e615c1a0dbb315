"""Decides which run may write checkpoints of a lineage: the one with the newest fencing number.

At its start a run writes `claim.json` into the lineage's folder: its fence, and the checkpoints of its predecessors
that exist at that moment. From then on a reader accepts the claimant's own checkpoints and the adopted ones, and no
others: a run that was replaced but still lives (a partitioned node, the last seconds of a killed pod) may finish a
save, which no run will read.

A claim is signed like a checkpoint. One without the signature is passed over, as if it were not there: whoever can
write it could remove it too, and must neither stop a run with a fence of their own nor choose what it resumes from.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field

from dapt_contract.base import Contract
from dapt_contract.checkpoint import CheckpointManifest
from dapt_contract.envelope import ContractError, SignatureError, read_envelope, write_envelope
from dapt_contract.run_identity import RunIdentity
from dapt_trainer.errors import InfrastructureError

logger = logging.getLogger(__name__)

CLAIM_SCHEMA = "dapt.claim"
CLAIM_FILE = "claim.json"


class Claim(Contract):
    """Holds the newest claim on a lineage."""

    fence: int = Field(ge=1)
    try_number: int = Field(ge=1)
    lineage: str = ""
    """Name of the lineage's folder: a claim that was copied from another one counts for nothing. Empty in a claim from
    before this field, which was not signed either."""
    adopted: tuple[str, ...] = ()
    """Folders of the predecessors' checkpoints at the time of the claim, relative to the work volume."""

    def admits(self, manifest: CheckpointManifest) -> bool:
        """Return whether a reader may use the checkpoint."""
        # A predecessor's checkpoint that was completed after the claim has an older fence and is not in `adopted`.
        return manifest.fence == self.fence or (
            manifest.fence < self.fence and manifest.folder in self.adopted
        )


def read_claim(lineage: Path, key: bytes) -> Claim | None:
    """Return the newest claim; None before the first, and where nothing but a claim of others is there.

    Args:
        lineage: folder of the lineage.
        key: that must have signed the claim.

    Raises:
        ContractError: the file exists and cannot be read.
    """
    path = lineage / CLAIM_FILE
    if not path.exists():
        return None
    try:
        _, claim = read_envelope(path, CLAIM_SCHEMA, Claim, key=key)
    except SignatureError as error:
        logger.warning("%s; it is not used", error)
        return None
    if claim.lineage != lineage.name:
        logger.warning("%s: a claim on %s; it is not used", path, claim.lineage or "no lineage")
        return None
    return claim


def write_claim(lineage: Path, identity: RunIdentity, adopted: tuple[str, ...], key: bytes) -> Claim:
    """Claim the lineage for a run.

    Args:
        lineage: folder of the lineage.
        identity: of the run.
        adopted: folders of the checkpoints that it has read, relative to the work volume.
        key: signs the claim.

    Raises:
        InfrastructureError: a newer run has claimed it.
        OSError: the volume is full or read-only.
    """
    # The fences of a lineage only rise: a run that was replaced may be slow, and must not take the lineage back.
    require_not_superseded(lineage, identity, key)
    claim = Claim(fence=identity.fence, try_number=identity.try_number, lineage=lineage.name, adopted=adopted)
    write_envelope(lineage / CLAIM_FILE, CLAIM_SCHEMA, claim, run_key=identity.key, key=key)
    return claim


def require_not_superseded(lineage: Path, identity: RunIdentity, key: bytes) -> None:
    """Raise if a newer run has claimed the lineage; call it before every write.

    Args:
        lineage: folder of the lineage.
        identity: of the run that is going to write.
        key: that must have signed a claim.

    Raises:
        InfrastructureError: a newer run has claimed the lineage, or the claim cannot be read.
    """
    try:
        claim = read_claim(lineage, key)
    except ContractError as error:
        raise InfrastructureError(f"the claim on {identity.lineage} cannot be read: {error}") from error
    if claim is not None and claim.fence > identity.fence:
        raise InfrastructureError(
            f"run {claim.try_number} (fence {claim.fence}) has taken over {identity.lineage}; "
            f"this is run {identity.try_number} (fence {identity.fence}), which writes nothing more"
        )
