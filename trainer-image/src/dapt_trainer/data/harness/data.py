"""Data of the harness' own tasks: what prepare loaded from the hub is served to the stages that run offline.

    harness/NAME/task.json    what the task is made of (`TaskData`)
    harness/NAME/0/ ...       one data set each, as `Dataset.save_to_disk` writes it

The cache of `datasets` is not used for this: whether it finds a data set again without a network depends on how it was
asked for, and it has no place for a digest.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dapt_contract.base import Contract
from dapt_contract.layout import HARNESS
from dapt_trainer.errors import InputError

TASK_FILE = "task.json"


class StoredSplit(Contract):
    """One split on disk."""

    folder: str
    """Relative to the task's folder."""
    rows: int
    sha256: str
    """Of its Arrow files."""


class StoredDataset(Contract):
    """What one call of `load_dataset` gave."""

    call: str
    """Its arguments as JSON."""
    splits: tuple[tuple[str, StoredSplit], ...]
    whole: bool = False
    """The call asked for one split and got it, not a dictionary."""


class TaskData(Contract):
    """One task, group or tag of the harness."""

    name: str
    folders: tuple[str, ...]
    """Below the harness' own task folder: where the descriptions of the task and its parts lie."""
    datasets: tuple[StoredDataset, ...]
    resolved: tuple[tuple[str, str], ...] = ()
    """Data set as the harness names it, and with the revision that was read."""


def call_key(path: Any, name: Any, options: dict[str, Any]) -> str:
    """What identifies a call of `load_dataset`."""
    return json.dumps([path, name, options], sort_keys=True, default=str)


def read_task_data(work: Path, name: str) -> TaskData:
    """What prepare left of a task.

    Raises:
        InputError: it left nothing, or the file is damaged.
    """
    path = work / HARNESS / name / TASK_FILE
    try:
        return TaskData.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"task {name}: {path} is missing; run prepare again") from error
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"task {name}: {path} is damaged; run prepare again") from error


@contextlib.contextmanager
def served(work: Path, data: TaskData) -> Iterator[None]:
    """While it lasts, `datasets.load_dataset` gives what is stored; the harness has no other place to hand data in.

    Raises:
        InputError: from the call, for a data set that is not stored.
    """
    import datasets

    stored = {dataset.call: dataset for dataset in data.datasets}
    before = datasets.load_dataset

    def load_dataset(path: Any, name: Any = None, **options: Any) -> Any:
        found = stored.get(call_key(path, name, options))
        if found is None:
            raise InputError(
                f"task {data.name}: data set {path} was not stored by prepare; run prepare again"
            )
        splits = {
            # in memory, because a mapped file makes the library write its own cache beside it
            split: datasets.load_from_disk(
                str(work / HARNESS / data.name / entry.folder), keep_in_memory=True
            )
            for split, entry in found.splits
        }
        return next(iter(splits.values())) if found.whole else datasets.DatasetDict(splits)

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = before
