"""Keeps the items that models are measured with on the work volume: what is read later must not contain them either."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dapt_contract.layout import ITEMS, PROBES, TASKS
from dapt_contract.stages.tuning_data import TuningDataConfig
from dapt_trainer.data.dedup.contamination import EvaluationItem
from dapt_trainer.data.items.checked_records import write_lines
from dapt_trainer.data.items.custom_items import Kind, evaluation_items, read_written_items
from dapt_trainer.data.items.item_limits import spread
from dapt_trainer.data.packing.prepared_files import check_prepared
from dapt_trainer.errors import InputError

_FILE = f"{ITEMS}/items.jsonl"


def write_measured_items(folder: Path, items: Iterable[EvaluationItem]) -> None:
    """Write the items below a folder that becomes the work volume, in their order.

    Raises:
        OSError: the disk is full.
    """
    write_lines(folder / _FILE, (asdict(item) for item in items))


@dataclass(frozen=True)
class MeasuredItems:
    """Holds the items that models are measured with."""

    items: list[EvaluationItem]
    unknown_tasks: tuple[str, ...] = ()
    """Tasks of the harness whose items are not known: an earlier version has prepared the volume."""


def measured_items(work: Path, config: TuningDataConfig) -> MeasuredItems:
    """Return the items that prepare wrote; on a volume from before it did, those of its custom tasks and probes.

    Raises:
        InputError: a file is missing, damaged, or not the one that prepare wrote.
    """
    check_prepared(work, ITEMS)
    if (work / _FILE).is_file():
        return MeasuredItems(read_item_lines(work / _FILE))
    items: list[EvaluationItem] = []
    sets: list[tuple[Kind, str, str]] = [
        ("task", TASKS, task.name) for task in config.tasks if task.source is not None
    ]
    sets += [("probe", PROBES, probe.name) for probe in config.probes]
    for kind, folder, name in sets:
        written = read_written_items(kind, work / folder / f"{name}.jsonl")
        items += evaluation_items(
            name, (written[index] for index in spread(len(written), config.evaluation_limit))
        )
    return MeasuredItems(items, tuple(task.name for task in config.tasks if task.source is None))


def read_item_lines(path: Path) -> list[EvaluationItem]:
    """Read items that were written one a line.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [EvaluationItem(**record | {"choices": tuple(record["choices"])}) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: the evaluation items cannot be read ({type(error).__name__}); run prepare again"
        ) from error
