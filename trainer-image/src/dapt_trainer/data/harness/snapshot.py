"""Loads tasks of the harness over the network and stores their data.

It runs as a program of its own, because the harness imports torch. Names are checked before anything is loaded. A data
set's revision is resolved once, read at that commit and recorded. Repositories with a loading script, which `datasets`
does not run any more, are read from the hub's own conversion to Parquet where there is one.

A split that only few-shot examples are drawn from keeps at most `FEW_SHOT_ROWS` rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.inputs.harness import unknown_task_message
from dapt_contract.sentences import shortened
from dapt_trainer.data.harness.data import (
    TASK_FILE,
    StoredDataset,
    StoredSplit,
    TaskData,
    call_key,
    digest_of_split,
    replaced_load_dataset,
)
from dapt_trainer.data.harness.items import SnapshotRequest, SnapshotResult, SnapshotTask
from dapt_trainer.data.harness.task_names import installed_tasks
from dapt_trainer.data.items.item_limits import shares, spread

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

FEW_SHOT_ROWS = 2000
METRICS = ("acc_norm", "acc", "exact_match", "em", "mc2")
"""Metrics that are a share of right answers, the preferred first."""
CONVERTED = "refs/convert/parquet"
"""The hub's branch with every data set as Parquet that it could convert."""
_SCRIPT_ERROR = "scripts are no longer supported"
_QUESTION_KEYS = ("question", "query", "ctx", "sentence", "prompt", "sent1")

LoadedTasks = dict[str, Any]
"""What `TaskManager.load` returns: `tasks`, `groups` and `group_map` by name."""
Row = dict[str, Any]
"""One row of a data set, with the fields that its author chose."""


@dataclass
class _LoadCall:
    """Records one call of `load_dataset` and its result."""

    key: str
    data: Dataset | DatasetDict
    resolved: tuple[str, str]
    evaluated_splits: set[str] = field(default_factory=set)
    example_splits: set[str] = field(default_factory=set)
    """Splits that few-shot examples may be drawn from."""


class TaskRefusedError(Exception):
    """Says why a task cannot be measured."""


def run(request: SnapshotRequest) -> SnapshotResult:
    """Store the data of the tasks; load nothing when a name is wrong or when no folder is given."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    known_tasks = installed_tasks(manager)
    errors = {name: message for name in request.names if (message := unknown_task_message(name, known_tasks))}
    tasks: dict[str, SnapshotTask] = {}
    if errors or request.folder is None:
        return SnapshotResult(tasks=tasks, errors=errors)
    for name in request.names:
        try:
            tasks[name] = _store_task(manager, name, request.limit, Path(request.folder) / name)
        except TaskRefusedError as error:
            errors[name] = str(error)
        except Exception as error:  # the harness and the hub raise exceptions of many libraries
            lines = str(error).strip().splitlines() or [type(error).__name__]
            errors[name] = (
                f"its data cannot be read ({shortened(lines[0], 160)}); check the network and the credentials, or give "
                "the task a source of your own"
            )
    return SnapshotResult(tasks=tasks, errors=errors)


def is_weighted_by_size(loaded: LoadedTasks, name: str) -> bool:
    """Return whether a group's score is the mean over all items; else it is the mean over its tasks."""
    group = loaded["groups"].get(name)
    metrics = (group.aggregate_metric_list or ()) if group is not None else ()
    return all(metric.weight_by_size for metric in metrics)


def chosen_documents(loaded: LoadedTasks, name: str, limit: int | None) -> dict[str, list[int]]:
    """Return for each task of a task, group or tag the indices of the documents that are measured."""
    tasks = loaded["tasks"]
    sizes = [len(task.eval_docs) for task in tasks.values()]
    counts = shares(sizes, limit, by_size=is_weighted_by_size(loaded, name))
    return {
        part: spread(size, count) for part, size, count in zip(tasks, sizes, counts, strict=True) if count
    }


def _store_task(manager: TaskManager, name: str, limit: int | None, folder: Path) -> SnapshotTask:
    calls: list[_LoadCall] = []
    loaded = _load(manager, name, calls)
    for part, task in loaded["tasks"].items():
        _check(part, task)
        _record_splits(task, calls)
    chosen = chosen_documents(loaded, name, limit)
    data = TaskData(
        name=name,
        folders=tuple(sorted(_folders(manager, [name, *loaded["groups"], *loaded["tasks"]]))),
        datasets=tuple(_store_dataset(call, folder, number) for number, call in enumerate(calls)),
        resolved=tuple(dict.fromkeys(call.resolved for call in calls)),
    )
    write_bytes_atomically(folder / TASK_FILE, data.model_dump_json(indent=1).encode())
    items = tuple(
        _item(task, task.eval_docs[index])
        for part, task in loaded["tasks"].items()
        for index in chosen.get(part, ())
    )
    return SnapshotTask(items=items, resolved=data.resolved)


def _load(manager: TaskManager, name: str, calls: list[_LoadCall]) -> LoadedTasks:
    """Load a task with its data.

    Args:
        manager: of the harness.
        name: of the task, group or tag.
        calls: gets the calls of `load_dataset`.
    """
    import datasets

    original = datasets.load_dataset

    def load_dataset(path: object, name: object = None, **options: Any) -> Dataset | DatasetDict:
        key = call_key(path, name, options)
        # The tasks of a group often share a data set: it is loaded and stored once.
        call = next((call for call in calls if call.key == key), None)
        if call is None:
            pinned = options
            commit = _commit(path, options.get("revision"))
            if commit:
                pinned = options | {"revision": commit}
            try:
                data = original(path, name, **pinned)
            except RuntimeError as error:
                if _SCRIPT_ERROR not in str(error):
                    raise
                # The hub's conversion has a history of its own, so it is pinned to a commit too.
                commit = _commit(path, CONVERTED) or CONVERTED
                data = original(path, name, **options | {"revision": commit})
            uri = f"hf://datasets/{path}"
            call = _LoadCall(key, data, (uri, f"{uri}@{commit}" if commit else uri))
            calls.append(call)
        return call.data

    with replaced_load_dataset(load_dataset):
        loaded: LoadedTasks = manager.load([name])
    return loaded


def _commit(path: object, revision: str | None) -> str | None:
    """Return the immutable revision of a repository; None for a builder of the library or a local folder."""
    if not isinstance(path, str) or path.count("/") != 1 or Path(path).exists():
        return None
    from huggingface_hub import HfApi

    commit: str | None = HfApi().dataset_info(path, revision=revision).sha
    return commit


def _check(part: str, task: Task) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskRefusedError(
            f"{part} runs code that the model writes, which dapt does not do; name another task"
        )
    if getattr(task, "MULTIMODAL", False):
        raise TaskRefusedError(f"{part} shows pictures or sound, and the model reads text; name another task")
    metrics = list(task.aggregation())
    if not any(metric in METRICS for metric in metrics):
        raise TaskRefusedError(
            f"none of the measures of {part} ({', '.join(metrics)}) is a share of right answers; dapt reads "
            f"{', '.join(METRICS)}: name another task"
        )


def _record_splits(task: Task, calls: Iterable[_LoadCall]) -> None:
    """Record in its call which splits of its data a task evaluates on and draws examples from."""
    call = next((call for call in calls if call.data is task.dataset), None)
    if call is None:
        return
    config = task.config
    evaluated = config.test_split or config.validation_split
    if evaluated is None:
        call.evaluated_splits.update(call.data)
        return
    call.evaluated_splits.add(evaluated)
    few_shot = getattr(getattr(task, "fewshot_cfg", None), "split", None)
    others = (config.training_split, config.validation_split, config.fewshot_split, few_shot)
    call.example_splits.update(split for split in others if split)


def _store_dataset(call: _LoadCall, folder: Path, number: int) -> StoredDataset:
    import datasets

    is_whole = not isinstance(call.data, datasets.DatasetDict)
    splits = {"all": call.data} if is_whole else dict(call.data)
    used = call.evaluated_splits | call.example_splits
    # A split that a task names but the data set lacks means that names differ: then all splits are kept.
    if not is_whole and used <= splits.keys() and used:
        splits = {split: data for split, data in splits.items() if split in used}
    stored = []
    for split, data in splits.items():
        if split in call.example_splits - call.evaluated_splits and len(data) > FEW_SHOT_ROWS:
            data = data.select(spread(len(data), FEW_SHOT_ROWS))
        split_folder = f"{number}/{split}"
        target = folder / split_folder
        # A selection is only a list of indices over the whole data: this writes the selected rows alone.
        data.flatten_indices().save_to_disk(str(target))
        digest = digest_of_split(target)
        stored.append((split, StoredSplit(folder=split_folder, rows=len(data), sha256=digest)))
    return StoredDataset(call=call.key, splits=tuple(stored), whole=is_whole)


def _folders(manager: TaskManager, names: Iterable[str]) -> set[str]:
    """Return the folders with the definitions of these tasks, relative to the harness' own task folder."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    entries = (manager.task_index.get(name) for name in names)
    paths = (Path(entry.yaml_path) for entry in entries if entry is not None and entry.yaml_path)
    return {path.parent.relative_to(root).as_posix() for path in paths}


def _item(task: Task, row: Row) -> tuple[str, str, tuple[str, ...]]:
    """Return question, right answer and all answers of a row, as texts where there are texts."""
    choices = _choices(task, row)
    target = task.doc_to_target(row)
    answer = target if isinstance(target, str) else ""
    shown = task.doc_to_choice(row) if task.config.doc_to_choice is not None else []
    if isinstance(target, str) and target in shown:
        target = shown.index(target)
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(choices):
        answer = choices[target]
    return _question(task, row), answer, tuple(choices)


def _question(task: Task, row: Row) -> str:
    by_lower_key = {key.lower(): value for key, value in row.items()}
    values = (by_lower_key.get(key) for key in _QUESTION_KEYS)
    question = next((value for value in values if isinstance(value, str) and value), None)
    return question if question is not None else str(task.doc_to_text(row))


def _choices(task: Task, row: Row) -> list[str]:
    shown = list(task.doc_to_choice(row)) if task.config.doc_to_choice is not None else []
    if all(isinstance(choice, str) and len(choice) > 1 for choice in shown):
        return shown
    # The task shows letters: their texts are in a list, or in numbered fields (`ending0`, `opa`, `option1`).
    texts = row.get("choices") or row.get("endings") or row.get("options")
    if isinstance(texts, dict):
        texts = texts.get("text") or list(texts.values())
    if not isinstance(texts, list):
        texts = [row[key] for key in sorted(row) if key[:-1] in ("ending", "op", "option")]
    fits = len(texts) == len(shown) and all(isinstance(choice, str) for choice in texts)
    return texts if fits else shown


if __name__ == "__main__":
    print(run(SnapshotRequest.model_validate_json(sys.argv[1])).model_dump_json())
