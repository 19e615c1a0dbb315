"""Defines the manifest of a checkpoint. A checkpoint exists when its manifest does.

A save writes and fsyncs the files in `try-N/checkpoint-STEP.partial/`, renames that folder to `try-N/checkpoint-STEP/`,
and writes the manifest `try-N/checkpoint-STEP.json` last. A reader trusts nothing else: it takes the newest manifest
whose files all have the listed size and SHA-256, and reports which ones it skipped and why.
"""

from pydantic import Field

from dapt_contract.base import Contract
from dapt_contract.envelope import canonical_json
from dapt_contract.measure import SidePerplexity
from dapt_contract.signature import is_same_text, signature_of

CHECKPOINT_SCHEMA = "dapt.checkpoint"


class FileEntry(Contract):
    """Describes one file of a folder by its path, size and content."""

    path: str
    """Path relative to the folder."""
    size_bytes: int = Field(ge=0)
    sha256: str


class CheckpointManifest(Contract):
    """Lists the files of a checkpoint and identifies the run, the configuration and the weights behind them."""

    folder: str
    """Path of the checkpoint's folder relative to the work volume."""
    candidate: str
    """Id of the candidate, for example `a1-s4560`."""
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    """Training tokens consumed so far over all ranks."""
    world_size: int = Field(ge=1)
    fence: int = Field(ge=1)
    lineage: str
    config_digest: str
    """Digest of the configuration that trained it; a run of another configuration must not resume from it."""
    weights_digest: str
    """SHA-256 over the weights' files; results are stored under it."""
    has_optimizer: bool = True
    """False once the optimizer state was dropped to save space: the checkpoint can be evaluated, not resumed."""
    domain: SidePerplexity | None = None
    """None until both perplexities are measured: the checkpoint is saved first, so that a stop loses nothing. A
    checkpoint without them can be resumed from and is not a candidate."""
    general: SidePerplexity | None = None
    files: tuple[FileEntry, ...]
    signature: str = ""
    """HMAC-SHA256 over the manifest without this field; checked before a pickle of the checkpoint is opened."""

    def signed(self, key: bytes) -> "CheckpointManifest":
        """Return a copy with its signature."""
        return self.model_copy(update={"signature": self._mac(key)})

    def without_optimizer(self, folder: str) -> "CheckpointManifest":
        """Return an unsigned copy without the files below `folder`, which hold the optimizer state."""
        files = tuple(entry for entry in self.files if not entry.path.startswith(f"{folder}/"))
        return self.model_copy(update={"files": files, "has_optimizer": False})

    def with_readings(self, domain: SidePerplexity, general: SidePerplexity) -> "CheckpointManifest":
        """Return an unsigned copy with both perplexities, which make the checkpoint a candidate."""
        return self.model_copy(update={"domain": domain, "general": general})

    def is_signed_with(self, key: bytes) -> bool:
        """Return whether the signature fits the content and the key."""
        return is_same_text(self.signature, self._mac(key))

    def _mac(self, key: bytes) -> str:
        # In one form that does not depend on the order or the spaces of the file, so that a reader computes the same
        # bytes.
        text = canonical_json(self.model_dump(mode="json", exclude={"signature"}))
        return signature_of(text, key)


def candidate_id(attempt: int, step: int) -> str:
    """Return the id of a candidate that is one checkpoint."""
    return f"a{attempt}-s{step}"


def average_id(attempt: int, members: int) -> str:
    """Return the id of a candidate that is the mean of an attempt's last checkpoints."""
    return f"a{attempt}-avg{members}"


def interpolation_id(candidate: str, share: float) -> str:
    """Return the id of a candidate interpolated with the base model, which keeps `share` of the way from it."""
    return f"{candidate}-i{share:g}"
