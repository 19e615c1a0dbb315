"""Defines `dapt.json` at the destination: which run wrote the model, and the list of its files."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.checkpoint import FileEntry
from dapt_contract.envelope import Envelope, envelope_bytes

MANIFEST = "dapt.json"
MODEL_SCHEMA = "dapt.model"


class ModelManifest(Contract):
    """Describes a published model. It is written last."""

    run_digest: str
    adaptation: str
    candidate: str
    digest: str
    """`sha256:` over names and digests of all files."""
    files: tuple[FileEntry, ...]


def manifest_bytes(manifest: ModelManifest) -> bytes:
    """Return the content of the manifest's file."""
    return envelope_bytes(MODEL_SCHEMA, manifest)


def run_digest_of(content: bytes) -> str:
    """Return the run digest in the content of a manifest.

    Raises:
        ValueError: not a manifest.
    """
    envelope = Envelope.model_validate_json(content)
    if envelope.schema_name != MODEL_SCHEMA:
        raise ValueError(f"holds {envelope.schema_name}, expected {MODEL_SCHEMA}")
    return ModelManifest.model_validate(envelope.body).run_digest
