"""Reads and writes `data/manifest.json`, which prepare writes last: without it there is no data on the work volume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError, digest_of, read_envelope, write_envelope
from dapt_contract.layout import DATA
from dapt_contract.measure import Side
from dapt_contract.stages.prepare import PrepareReport
from dapt_trainer.errors import InputError

DATA_SCHEMA = "dapt.data"
MANIFEST = "manifest.json"
MANIFEST_DIGEST_PREFIX = "manifest-"
"""Begins a `data_digest` of the whole manifest; earlier ones cover the files and the sequence length alone."""

TokenType = Literal["uint16", "uint32"]


class ShardFile(Contract):
    """Describes one file of a shard."""

    name: str
    size_bytes: int
    sha256: str


class ShardManifest(Contract):
    """Describes the packed sequences of one source."""

    name: str
    """Name of the source, for example `domain-0`, which is also the folder's name."""
    side: Side
    index: int
    source: str
    """URI as written in the manifest of the adaptation."""
    weight: float
    sequences: int
    tokens: int
    """Tokens of documents, each counted once; end-of-text tokens included."""
    positions: int
    """Positions of all sequences."""
    filled_positions: int
    """Positions that hold a token: `tokens` and `repeated_tokens` together."""
    repeated_tokens: int = 0
    """Tokens that appear a second time, so that the last sequence of a small source is full."""
    pieces: int = 0
    """Documents and parts of documents; each is a segment of one sequence."""
    documents: int
    cut_documents: int
    files: tuple[ShardFile, ...] = ()


class DataManifest(Contract):
    """Describes the shards for everything that reads them."""

    config_digest: str
    """`PrepareConfig.corpus_digest` of the configuration that made them."""
    inputs_digest: str = ""
    """`PrepareConfig.inputs_digest`: also of the evaluation items next to them."""
    data_digest: str
    """`manifest_digest` of this manifest; of an earlier version: SHA-256 over the files and the sequence length."""
    sequence_length_tokens: int = Field(ge=2)
    token_type: TokenType
    end_of_text_id: int
    begin_of_text_id: int | None = None
    """Token before each document, where the tokenizer puts one there."""
    document_boundaries: bool
    shards: tuple[ShardManifest, ...]
    files: tuple[tuple[str, str], ...] = ()
    """(path on the work volume, SHA-256) of held-out text, evaluation items, tasks and probes; empty in a manifest from
    before this field."""
    report: PrepareReport

    def with_digest(self) -> DataManifest:
        """Return the manifest with its digest, which the report in it has too."""
        digest = manifest_digest(self.model_dump(mode="json"))
        facts = self.report.facts.model_copy(update={"data_digest": digest})
        report = self.report.model_copy(update={"facts": facts})
        return self.model_copy(update={"data_digest": digest, "report": report})


def manifest_digest(body: Mapping[str, object]) -> str:
    """Return the digest of everything that a manifest says of the data, but not of durations and warnings.

    Args:
        body: of the manifest as it is written. It is not read into the model first, whose fields a later version adds
            to: then every manifest of an earlier one would have another digest.
    """
    report = _without(body["report"], "seconds_by_step")
    facts = _without(report["facts"], "data_digest", "warnings")
    data = {**_without(body, "data_digest"), "report": {**report, "facts": facts}}
    return MANIFEST_DIGEST_PREFIX + digest_of(data)


def _without(value: object, *names: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{type(value).__name__} instead of an object: the manifest was not read into its model"
        )
    return {name: field for name, field in value.items() if name not in names}


def read_manifest(work: Path) -> DataManifest:
    """Read the manifest on the work volume.

    Raises:
        InputError: prepare has not finished there.
    """
    return read_manifest_and_body(work)[0]


def read_manifest_and_body(work: Path) -> tuple[DataManifest, Mapping[str, object]]:
    """Read the manifest on the work volume, and return also what stands in the file.

    Raises:
        InputError: as `read_manifest`.
    """
    try:
        envelope, manifest = read_envelope(work / DATA / MANIFEST, DATA_SCHEMA, DataManifest)
    except ContractError as error:
        raise InputError(f"{error}; run prepare again") from error
    return manifest, envelope.body


def finished_manifest(work: Path, config_digest: str) -> DataManifest | None:
    """Return the manifest of a finished prepare of this configuration whose shards are complete; else None."""
    try:
        manifest = read_manifest(work)
    except InputError:
        return None
    if manifest.config_digest != config_digest or problem_of_shards(work, manifest):
        return None
    return manifest


def problem_of_shards(work: Path, manifest: DataManifest) -> str | None:
    """Return what is wrong with the first shard file that lacks or has another size than listed; None when all fit."""
    for shard in manifest.shards:
        for file in shard.files:
            path = work / DATA / shard.name / file.name
            size = path.stat().st_size if path.is_file() else None
            if size != file.size_bytes:
                finding = "is missing" if size is None else f"has {size} bytes"
                return f"{path}: {finding}, the manifest says {file.size_bytes}"
    return None


def write_manifest(folder: Path, manifest: DataManifest, *, run_key: str) -> None:
    """Write the manifest into a data folder, atomically.

    Raises:
        OSError: the disk is full.
    """
    write_envelope(folder / MANIFEST, DATA_SCHEMA, manifest, run_key=run_key)
