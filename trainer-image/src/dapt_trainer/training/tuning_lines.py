"""Reads the examples and pairs that were prepared for fine-tuning and preference tuning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dapt_contract.base import JsonObject
from dapt_contract.layout import TUNING_RECORDS
from dapt_trainer.errors import InputError


def read_tuning_lines(folder: Path, field: str) -> Iterator[tuple[str, JsonObject]]:
    """Yield (place, object) of each line in a folder of tuning data.

    Args:
        folder: that prepare or tuning_data wrote.
        field: of the manifest, for messages.

    Raises:
        InputError: there is no file or no line in it, or a line is damaged.
    """
    path = folder / TUNING_RECORDS
    try:
        # Not `splitlines`: a text may hold other separators of lines.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no tuning data there; run prepare again") from error
    num_lines = 0
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        num_lines += 1
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: damaged; run tuning_data again") from error
        if not isinstance(record, dict):
            raise InputError(f"{place}: damaged; run tuning_data again")
        yield place, record
    if not num_lines:
        raise InputError(f"{path}: no record in it; give {field}, or leave its block out")
