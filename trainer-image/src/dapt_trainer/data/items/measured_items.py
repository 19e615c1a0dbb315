"""Keeps the items that models are measured with on the work volume: what is read later must not contain them either."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from dapt_contract.layout import ITEMS
from dapt_trainer.data.dedup.contamination import EvaluationItem
from dapt_trainer.data.items.checked_records import write_lines
from dapt_trainer.errors import InputError

_FILE = f"{ITEMS}/items.jsonl"


def write_measured_items(folder: Path, items: Iterable[EvaluationItem]) -> None:
    """Write the items below a folder that becomes the work volume, in their order.

    Raises:
        OSError: the disk is full.
    """
    write_lines(folder / _FILE, (asdict(item) for item in items))


def read_measured_items(work: Path) -> list[EvaluationItem]:
    """Return the items that prepare wrote.

    Raises:
        InputError: there is no file, or it is damaged.
    """
    path = work / _FILE
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [EvaluationItem(**record | {"choices": tuple(record["choices"])}) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: the evaluation items cannot be read ({type(error).__name__}); run prepare again"
        ) from error
