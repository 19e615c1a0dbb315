"""Stores what was measured of the base model in files of one line for each record, known by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

from dapt_contract.base import Contract
from dapt_contract.untrusted.regular_files import read_regular_below
from dapt_trainer.digests import changed_file
from dapt_trainer.errors import InputError

R = TypeVar("R", bound=Contract)
MAX_BYTES: Final = 1024**3
"""Of a file; a few million items have half of that, and ten million documents less."""


def record_lines(records: Iterable[Contract]) -> bytes:
    """Return one line for each record."""
    return "".join(record.model_dump_json() + "\n" for record in records).encode()


def records_digest(records: Iterable[Contract]) -> str:
    """Return the hexadecimal SHA-256 of `record_lines`."""
    return hashlib.sha256(record_lines(records)).hexdigest()


def read_records(work: Path, name: str, kind: type[R], title: str, expected_digest: str) -> tuple[R, ...]:
    """Read a file of `record_lines`.

    Args:
        work: root of the work volume.
        name: of the file, relative to it. A link or a pipe in its way is not opened: a report names it, and whoever
            writes to the volume can write one.
        kind: class of the records.
        title: what they are, for messages.
        expected_digest: its `records_digest`; empty: it is not known, and the file is read unchecked.

    Raises:
        InputError: the file is missing or damaged, or it is not the one that was written.
    """
    path = work / name
    try:
        content = read_regular_below(work, name, MAX_BYTES)
        found = hashlib.sha256(content).hexdigest()
        if expected_digest and found != expected_digest:
            raise changed_file(path, found, expected_digest)
        # Not `splitlines`: an answer may hold U+2028 and other characters that it takes for line breaks.
        return tuple(kind.model_validate_json(line) for line in content.split(b"\n") if line)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the base model's {title} cannot be read ({type(error).__name__}); run baseline again"
        ) from error
