"""Reads the examples and pairs that were prepared for fine-tuning and preference tuning."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from dapt_contract.base import JsonObject
from dapt_contract.layout import TUNING_RECORDS
from dapt_trainer.digests import changed_file
from dapt_trainer.errors import InputError


def read_tuning_lines(
    folder: Path, field: str, expected_digest: str | None = None
) -> Iterator[tuple[str, JsonObject]]:
    """Yield (place, object) of each line in a folder of tuning data.

    Args:
        folder: that prepare or tuning_data wrote.
        field: of the manifest, for messages.
        expected_digest: first digits of the file's SHA-256; None: it is not known, and the file is read unchecked.

    Raises:
        InputError: there is no file or no line in it, a line is damaged, or the file is not the one that was prepared.
    """
    path = folder / TUNING_RECORDS
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no tuning data there; run prepare again") from error
    # Before the first line is used: a file that was cut at the end of a line has no damaged one.
    digest = hashlib.sha256(content).hexdigest()
    if expected_digest is not None and not digest.startswith(expected_digest):
        raise changed_file(path, digest, expected_digest)
    # Not `splitlines`: a text may hold other separators of lines.
    lines = content.split(b"\n")
    num_lines = 0
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        num_lines += 1
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:  # no JSON, or no UTF-8
            raise InputError(f"{place}: damaged; run tuning_data again") from error
        if not isinstance(record, dict):
            raise InputError(f"{place}: damaged; run tuning_data again")
        yield place, record
    if not num_lines:
        raise InputError(f"{path}: no record in it; give {field}, or leave its block out")
