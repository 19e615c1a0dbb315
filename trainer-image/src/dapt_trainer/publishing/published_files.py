"""Defines `dapt.json` at the destination: which run wrote the model, and the list of its files."""

from __future__ import annotations

from pathlib import Path

from dapt_contract.base import Contract
from dapt_contract.checkpoint import FileEntry
from dapt_contract.envelope import Envelope, envelope_bytes
from dapt_contract.untrusted.regular_files import IrregularFileError, read_regular_file

MANIFEST = "dapt.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
"""One that lists 100,000 files; a larger one is not read, whoever wrote it."""
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


def read_manifest(path: Path) -> bytes:
    """Return what lies at a destination as its manifest; nothing for what is too large or no file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return read_regular_file(path.resolve(), MAX_MANIFEST_BYTES)  # the hub's cache has links
    except IrregularFileError:
        return b""


def run_digest_of(content: bytes) -> str:
    """Return the run digest in the content of a manifest.

    Raises:
        ValueError: not a manifest.
    """
    envelope = Envelope.model_validate_json(content)
    if envelope.schema_name != MODEL_SCHEMA:
        raise ValueError(f"holds {envelope.schema_name}, expected {MODEL_SCHEMA}")
    return ModelManifest.model_validate(envelope.body).run_digest
