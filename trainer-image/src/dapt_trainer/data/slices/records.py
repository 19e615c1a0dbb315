"""Defines what a slice leaves on the work volume: its documents, and `slice.json`, which is written last.

Files of a slice, little endian, for D documents of which K are free of evaluation items, in reading order:

    documents.bin     DOCUMENT [D]        hash, half, task that it is contaminated by, and lengths of each
    tokens.bin        uint16 or uint32    tokens of the K documents
    sketches.bin      uint64              sketches of the K documents
    signatures.bin    uint32 [K, HASHES]  only where near-duplicates are searched for
    texts.jsonl       K lines             only where an extended tokenizer reads them again
    candidates.jsonl                      texts that may be held out, one a line

Everything is data: nothing of it is executed or names a file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dapt_contract.base import Contract
from dapt_contract.envelope import ContractError, read_envelope, write_envelope
from dapt_trainer.data.packing.data_manifest import ShardFile
from dapt_trainer.data.reading.documents import BadRecord
from dapt_trainer.data.reading.text_batches import Findings, ShownRecord
from dapt_trainer.digests import sha256_of_file
from dapt_trainer.errors import InfrastructureError

RECORD = "slice.json"
DOCUMENTS, TOKENS, SKETCHES = "documents.bin", "tokens.bin", "sketches.bin"
SIGNATURES, TEXTS, CANDIDATES = "signatures.bin", "texts.jsonl", "candidates.jsonl"
SLICE_SCHEMA = "dapt.slice"
DOCUMENT = np.dtype([("key", "<u8"), ("tokens", "<u4"), ("sketch", "<u4"), ("task", "<i4"), ("half", "u1")])
"""One document: lengths are 0 where a task is named, whose item it contains; -1: it contains none."""


class StoredBadRecord(Contract):
    """Holds a bad record that may be shown."""

    location: str
    reason: str
    records: int
    """Records of the slice that had been read when it was found."""


class SliceRecord(Contract):
    """Describes what a slice left."""

    identity: str
    """Digest of everything that decides its content."""
    records: int = 0
    bad_records: int = 0
    empty: int = 0
    duplicates: int = 0
    """Documents that occurred before in the slice."""
    documents: int = 0
    """D of the files."""
    tokens: int = 0
    shown: tuple[StoredBadRecord, ...] = ()
    failures: tuple[str, ...] = ()
    languages: tuple[tuple[int, int, str], ...] = ()
    """(number among the D documents, characters, language) of those whose language may be sampled."""
    candidates: tuple[tuple[int, int], ...] = ()
    """(number among the D documents, offset in `candidates.jsonl`) of those that may be held out."""
    files: tuple[ShardFile, ...] = Field(default=(), max_length=10)

    @property
    def findings(self) -> Findings:
        """Return what is wrong with its records."""
        shown = tuple(ShownRecord(BadRecord(bad.location, bad.reason), bad.records) for bad in self.shown)
        return Findings(self.records, self.bad_records, shown, self.failures)


class SliceSpool:
    """Reads what a slice left in a folder.

    Raises:
        ContractError: the record is missing, damaged or signed with another key, or a file has another size than it
            says.
    """

    def __init__(self, folder: Path, key: bytes = b"") -> None:
        _, self.record = read_envelope(folder / RECORD, SLICE_SCHEMA, SliceRecord, key=key)
        self.folder = folder
        for file in self.record.files:
            path = self.path(file.name)
            if (
                Path(file.name).name != file.name
                or not path.is_file()
                or path.stat().st_size != file.size_bytes
            ):
                raise ContractError(f"{path}: has not the {file.size_bytes} bytes that {RECORD} says")

    def path(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.folder / name

    def documents(self) -> npt.NDArray[np.void]:
        """Return its documents, [D] of `DOCUMENT`.

        Raises:
            InfrastructureError: the file is not the one that the slice left.
        """
        documents = np.fromfile(self.path(DOCUMENTS), dtype=DOCUMENT)
        if len(documents) != self.record.documents:
            raise InfrastructureError(
                f"{self.path(DOCUMENTS)}: has {len(documents)} documents, and {RECORD} says "
                f"{self.record.documents}: the work volume changed while prepare ran; run it again"
            )
        return documents

    def is_unchanged(self) -> bool:
        """Return whether the content of all files is what the record says of them."""
        return all(sha256_of_file(self.path(file.name)) == file.sha256 for file in self.record.files)


def slices_key(uid: str) -> bytes:
    """Return the key that signs what is left of the corpus until it is packed.

    Prepare has no key of its own, since it reads what others have written. An adaptation's uid is random and stands
    nowhere on the work volume while it is prepared, so who can only write there can make no slice that is believed.
    """
    return hashlib.sha256(b"dapt slices\n" + uid.encode()).digest()


def write_record(folder: Path, record: SliceRecord, run_key: str, key: bytes = b"") -> None:
    """Write the record of a slice into its folder, after its other files; signed where there is a key.

    Raises:
        OSError: the disk is full.
    """
    write_envelope(folder / RECORD, SLICE_SCHEMA, record, run_key=run_key, key=key)
