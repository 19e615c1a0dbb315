"""`dapt.json` at the destination: which run wrote the model, and every file of it."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.envelope import Envelope
from dapt_contract.version import PRODUCT_VERSION

MANIFEST = "dapt.json"
MODEL_SCHEMA = "dapt.model"


class PublishedFile(Contract):
    """One file of the model."""

    path: str
    size_bytes: int
    sha256: str


class ModelManifest(Contract):
    """Written last."""

    run_digest: str
    adaptation: str
    candidate: str
    digest: str
    """`sha256:` over names and digests of all files."""
    files: tuple[PublishedFile, ...]


def manifest_bytes(manifest: ModelManifest) -> bytes:
    """The manifest in its envelope, ready to be written."""
    envelope = Envelope(
        schema_name=MODEL_SCHEMA,
        version=1,
        producer=f"dapt {PRODUCT_VERSION}",
        run_key="",
        body=manifest.model_dump(mode="json"),
    )
    return (envelope.model_dump_json(indent=1) + "\n").encode()


def run_digest_of(content: bytes) -> str:
    """The run digest in a manifest's bytes.

    Raises:
        ValueError: not a manifest.
    """
    envelope = Envelope.model_validate_json(content)
    if envelope.schema_name != MODEL_SCHEMA:
        raise ValueError(f"holds {envelope.schema_name}, expected {MODEL_SCHEMA}")
    return ModelManifest.model_validate(envelope.body).run_digest
