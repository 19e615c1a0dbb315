"""A checkpoint exists when its manifest does.

Order of a save: files written and fsynced in `try-N/checkpoint-STEP.partial/`, folder renamed to
`try-N/checkpoint-STEP/`, manifest `try-N/checkpoint-STEP.json` written last. A reader trusts nothing else: it takes the
newest manifest whose files all have the listed size and SHA-256, and says which it skipped and why.
"""

from __future__ import annotations

import hashlib
import hmac

from pydantic import Field

from dapt_contract.base import Contract
from dapt_contract.envelope import canonical_json
from dapt_contract.measure import SidePerplexity

CHECKPOINT_SCHEMA = "dapt.checkpoint"


class FileEntry(Contract):
    """One file of a checkpoint."""

    path: str
    """Relative to the checkpoint's folder."""
    size_bytes: int = Field(ge=0)
    sha256: str


class CheckpointManifest(Contract):
    """Written after everything else of a checkpoint."""

    folder: str
    """Relative to the work volume."""
    candidate: str
    """Id of the candidate, for example `a1-s4560`."""
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    """Training tokens consumed so far over all ranks."""
    world_size: int = Field(ge=1)
    fence: int = Field(ge=1)
    lineage: str
    config_digest: str
    """Of the configuration that trained it; another one must not resume from it."""
    weights_digest: str
    """SHA-256 over the weights' files; the name under which results are stored."""
    has_optimizer: bool = True
    """False once the optimizer state was dropped to save space: good for evaluation, not for resuming."""
    domain: SidePerplexity | None = None
    """None until both perplexities were measured: the checkpoint is saved first, so that a stop loses nothing. A
    checkpoint without them is good for resuming alone and is no candidate."""
    general: SidePerplexity | None = None
    files: tuple[FileEntry, ...]
    signature: str = ""
    """HMAC-SHA256 over the manifest without this field; checked before a pickle of the checkpoint is opened."""

    def signed(self, key: bytes) -> CheckpointManifest:
        """A copy with its signature."""
        return self.model_copy(update={"signature": self._mac(key)})

    def is_signed_with(self, key: bytes) -> bool:
        """Whether the signature fits the content and the key."""
        return hmac.compare_digest(self.signature, self._mac(key))

    def _mac(self, key: bytes) -> str:
        text = canonical_json(self.model_dump(mode="json", exclude={"signature"}))
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def candidate_id(attempt: int, step: int) -> str:
    """The id of a plain checkpoint as candidate."""
    return f"a{attempt}-s{step}"


def average_id(attempt: int, members: int) -> str:
    """The id of the mean of an attempt's last checkpoints."""
    return f"a{attempt}-avg{members}"


def interpolation_id(candidate: str, share: float) -> str:
    """The id of a candidate brought towards the base model: `share` of the way from it is kept."""
    return f"{candidate}-i{share:g}"
