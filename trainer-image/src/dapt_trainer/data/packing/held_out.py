"""Held-out text: chosen by hash, measured on, never trained on.

A document's place is decided by a keyed hash of its normalized text, so duplicates fall on one side, whatever source
they come from and in whatever order they are read. One part of the hash says held-out or not, another one which half.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dapt_contract.layout import HELD_OUT
from dapt_contract.measure import Side
from dapt_trainer.errors import InputError

Half = Literal["a", "b"]
HALVES: tuple[Half, Half] = ("a", "b")


@dataclass(frozen=True)
class HeldOutDocument:
    """One document to measure on."""

    ids: list[int]
    """Tokens of the base model's tokenizer, without special tokens."""
    bytes: int
    """UTF-8 bytes of the text."""
    text: str = ""


def held_out_path(folder: Path, side: Side, half: Half) -> Path:
    """The file of one half below the held-out folder."""
    return folder / f"{side}-{half}.jsonl"


def read_held_out(work: Path, side: Side, half: Half) -> list[HeldOutDocument]:
    """One half of a side's held-out text, in the order in which it was written.

    Raises:
        InputError: prepare has not written it, or it is damaged.
    """
    path = held_out_path(work / HELD_OUT, side, half)
    documents = []
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                documents.append(HeldOutDocument(record["ids"], record["bytes"], record["text"]))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no held-out text there; run prepare again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}:{len(documents) + 1}: not a held-out document; run prepare again"
        ) from error
    return documents


def write_held_out(folder: Path, side: Side, half: Half, documents: Iterable[HeldOutDocument]) -> None:
    """Write one half.

    Raises:
        OSError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held_out_path(folder, side, half).open("w", encoding="utf-8") as file:
        for document in documents:
            record = {"text": document.text, "ids": document.ids, "bytes": document.bytes}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
