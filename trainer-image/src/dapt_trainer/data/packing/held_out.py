"""Reads and writes held-out text, which is chosen by hash, measured on, and never trained on.

A keyed hash of its normalized text decides whether a document is held out, so duplicates are treated alike, whatever
source they come from and in whatever order they are read. Another part of the same hash decides the half.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dapt_contract.layout import HELD_OUT
from dapt_contract.measure import Side
from dapt_trainer.digests import changed_file
from dapt_trainer.errors import InputError

Half = Literal["a", "b"]
HALVES: tuple[Half, Half] = ("a", "b")


@dataclass(frozen=True)
class HeldOutDocument:
    """Holds one document to measure on."""

    ids: list[int]
    """Tokens of the base model's tokenizer, without special tokens."""
    bytes: int
    """UTF-8 bytes of the text."""
    text: str = ""
    lead_tokens: int = 0
    """First tokens that are not scored (`packing.leads`)."""
    lead_characters: int = 0
    """Characters of these tokens."""

    @property
    def scored_tokens(self) -> int:
        """Return the number of tokens that are scored."""
        return len(self.ids) - self.lead_tokens

    @property
    def scored_bytes(self) -> int:
        """Return the UTF-8 bytes of the text that is scored."""
        lead = self.text[: self.lead_characters]
        return self.bytes - len(lead.encode("utf-8", "surrogatepass"))

    def with_lead(self, tokens: int, characters: int) -> HeldOutDocument:
        """Return the document with a lead of `tokens`, which spell `characters`."""
        return replace(self, lead_tokens=tokens, lead_characters=characters)


def held_out_path(folder: Path, side: Side, half: Half) -> Path:
    """Return the file of one half below the held-out folder."""
    return folder / f"{side}-{half}.jsonl"


def held_out_name(side: Side, half: Half) -> str:
    """Return the path of the file of one half, relative to the work volume."""
    return held_out_path(Path(HELD_OUT), side, half).as_posix()


def read_held_out(
    work: Path, side: Side, half: Half, expected_digest: str | None = None
) -> list[HeldOutDocument]:
    """Read one half of a side's held-out text, in the order in which it was written.

    Args:
        work: root of the work volume.
        side: of the corpus.
        half: of the side.
        expected_digest: SHA-256 of the file; None: it is not known, and the file is read unchecked.

    Raises:
        InputError: prepare has not written it, it is damaged, or it is not the file that prepare wrote.
    """
    path = held_out_path(work / HELD_OUT, side, half)
    documents = []
    digest = hashlib.sha256()
    try:
        with path.open("rb") as lines:
            for line in lines:
                digest.update(line)
                record = json.loads(line)
                document = HeldOutDocument(record["ids"], record["bytes"], record["text"])
                documents.append(document.with_lead(*record.get("lead", (0, 0))))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no held-out text there; run prepare again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}:{len(documents) + 1}: not a held-out document; run prepare again"
        ) from error
    # Hashed on the way: the text is read at every checkpoint.
    if expected_digest is not None and digest.hexdigest() != expected_digest:
        raise changed_file(path, digest.hexdigest(), expected_digest)
    return documents


def write_held_out(folder: Path, side: Side, half: Half, documents: Iterable[HeldOutDocument]) -> None:
    """Write one half of a side's held-out text.

    Raises:
        OSError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held_out_path(folder, side, half).open("w", encoding="utf-8") as file:
        for document in documents:
            record = {"text": document.text, "ids": document.ids, "bytes": document.bytes}
            if document.lead_tokens:
                record["lead"] = [document.lead_tokens, document.lead_characters]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
