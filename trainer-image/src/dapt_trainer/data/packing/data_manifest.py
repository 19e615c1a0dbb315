"""`data/manifest.json`: what prepare left on the work volume. It is written last; no manifest, no data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError, read_envelope, write_envelope
from dapt_contract.layout import DATA
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import PrepareReport
from dapt_trainer.errors import InputError

DATA_SCHEMA = "dapt.data"
MANIFEST = "manifest.json"

TokenType = Literal["uint16", "uint32"]


class ShardFile(Contract):
    """One file of a shard."""

    name: str
    size_bytes: int
    sha256: str


class ShardManifest(Contract):
    """One source's packed sequences, with the counts behind them."""

    name: str
    """`domain-0`: also the folder's name."""
    side: Side
    index: int
    source: str
    """URI as written in the manifest of the adaptation."""
    weight: float
    sequences: int
    tokens: int
    """Tokens of documents, each counted once; end-of-text tokens included."""
    positions: int
    """Of all sequences."""
    filled_positions: int
    """Packed positions that carry a token: `tokens` and `repeated_tokens` together."""
    repeated_tokens: int = 0
    """Tokens that stand twice, so that the last sequence of a small source is full."""
    pieces: int = 0
    """Documents and parts of documents; each is a segment of one sequence."""
    documents: int
    cut_documents: int
    files: tuple[ShardFile, ...] = ()


class DataManifest(Contract):
    """Everything that a reader of the shards must know."""

    config_digest: str
    """Of the prepare configuration that it answers."""
    data_digest: str
    """SHA-256 over shards and held-out, task, probe and instruction files: equal digests, equal data."""
    sequence_length_tokens: int = Field(ge=2)
    token_type: TokenType
    end_of_text_id: int
    begin_of_text_id: int | None = None
    """Stands before each document when the tokenizer puts one there."""
    document_boundaries: bool
    shards: tuple[ShardManifest, ...]
    report: PrepareReport


def read_manifest(work: Path) -> DataManifest:
    """The manifest on the work volume.

    Raises:
        InputError: prepare has not finished there.
    """
    try:
        return read_envelope(work / DATA / MANIFEST, DATA_SCHEMA, DataManifest)[1]
    except ContractError as error:
        raise InputError(f"{error}; run prepare again") from error


def finished_manifest(work: Path, config_digest: str) -> DataManifest | None:
    """The manifest of a finished prepare of this configuration whose shards are all there; else None."""
    try:
        manifest = read_manifest(work)
    except InputError:
        return None
    if manifest.config_digest != config_digest:
        return None
    for shard in manifest.shards:
        for file in shard.files:
            path = work / DATA / shard.name / file.name
            if not path.is_file() or path.stat().st_size != file.size_bytes:
                return None
    return manifest


def write_manifest(folder: Path, manifest: DataManifest, *, run_key: str) -> None:
    """Write the manifest into a data folder, atomically.

    Raises:
        OSError: the disk is full.
    """
    write_envelope(folder / MANIFEST, DATA_SCHEMA, manifest, run_key=run_key)
