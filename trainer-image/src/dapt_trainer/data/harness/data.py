"""Serves the data of the harness' tasks, which prepare loaded from the hub, to the stages that run offline.

    harness/NAME/task.json    which parts and data sets the task has (`TaskData`)
    harness/NAME/0/ ...       one data set each, as `Dataset.save_to_disk` writes it

The cache of `datasets` is not used for this: whether it finds a data set again without a network depends on the
arguments of the call that loaded it, and it has no place for a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dapt_contract.base import Contract
from dapt_contract.layout import HARNESS
from dapt_trainer.digests import changed_file
from dapt_trainer.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TASK_FILE = "task.json"


class StoredSplit(Contract):
    """Describes one split on disk."""

    folder: str
    """Path relative to the task's folder."""
    rows: int
    sha256: str
    """Digest of its Arrow files."""


class StoredDataset(Contract):
    """Describes the result of one call of `load_dataset`."""

    call: str
    """Arguments of the call as JSON."""
    splits: tuple[tuple[str, StoredSplit], ...]
    whole: bool = False
    """Whether the call returned one split, not a dictionary of splits."""


class TaskData(Contract):
    """Describes the stored data of one task, group or tag of the harness."""

    name: str
    folders: tuple[str, ...]
    """Folders, relative to the harness' own task folder, with the definitions of the task and its parts."""
    datasets: tuple[StoredDataset, ...]
    resolved: tuple[tuple[str, str], ...] = ()
    """(data set as the harness names it, the same with the revision that was read)."""


def call_key(path: object, name: object, options: Mapping[str, object]) -> str:
    """Return the key of a call of `load_dataset`: equal for equal arguments."""
    return json.dumps([path, name, options], sort_keys=True, default=str)


def read_task_data(work: Path, name: str) -> TaskData:
    """Read what prepare stored of a task.

    Raises:
        InputError: nothing is stored, or the file is damaged.
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
    """Make `datasets.load_dataset` return the stored data while the block runs.

    Raises:
        InputError: from the call, for a data set that is not stored.
    """
    import datasets

    stored = {dataset.call: dataset for dataset in data.datasets}

    def load_dataset(path: object, name: object = None, **options: object) -> Dataset | DatasetDict:
        dataset = stored.get(call_key(path, name, options))
        if dataset is None:
            raise InputError(
                f"task {data.name}: data set {path} was not stored by prepare; run prepare again"
            )
        splits = {
            # In memory, because the library writes a cache of its own into the folder of a mapped file.
            split: datasets.load_from_disk(
                str(_checked(work / HARNESS / data.name / entry.folder, entry)), keep_in_memory=True
            )
            for split, entry in dataset.splits
        }
        return next(iter(splits.values())) if dataset.whole else datasets.DatasetDict(splits)

    with replaced_load_dataset(load_dataset):
        yield


def digest_of_split(folder: Path) -> str:
    """Return the hexadecimal SHA-256 of the Arrow files of a split on disk."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.arrow")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _checked(folder: Path, split: StoredSplit) -> Path:
    """Return the folder of a split whose files are those that prepare wrote.

    Raises:
        InputError: they are not.
    """
    found = digest_of_split(folder)
    if found != split.sha256:
        raise changed_file(folder, found, split.sha256)
    return folder


@contextlib.contextmanager
def replaced_load_dataset(replacement: Callable[..., Dataset | DatasetDict]) -> Iterator[None]:
    """Replace `datasets.load_dataset` while the block runs: the harness has no parameter for its data."""
    import datasets

    original = datasets.load_dataset
    datasets.load_dataset = replacement
    try:
        yield
    finally:
        datasets.load_dataset = original
