"""Loads the harness' own tasks where there is a network, and stores their data.

A program of its own, because the harness imports torch. Names are judged before anything is loaded. A data set's
revision is resolved once, read at that commit and recorded. Repositories with a loading script, which `datasets` does
not run any more, are read from the hub's own conversion to Parquet where there is one.

Of a split that is only drawn on for few-shot examples at most `FEW_SHOT_ROWS` rows are kept.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.harness import unknown_task_message
from dapt_trainer.data.harness.data import TASK_FILE, StoredDataset, StoredSplit, TaskData, call_key
from dapt_trainer.data.harness.task_names import installed
from dapt_trainer.data.items.item_limits import shares, spread

FEW_SHOT_ROWS = 2000
METRICS = ("acc_norm", "acc", "exact_match", "em", "mc2")
"""Measures that are a share of right answers, the preferred first."""
CONVERTED = "refs/convert/parquet"
"""The hub's branch with every data set as Parquet that it could convert."""
_SCRIPTS = "scripts are no longer supported"
_QUESTIONS = ("question", "query", "ctx", "sentence", "prompt", "sent1")


@dataclass
class _Loaded:
    """One call of `load_dataset` and what it gave."""

    key: str
    data: Any
    resolved: tuple[str, str]
    splits: set[str] = field(default_factory=set)
    """That are evaluated on."""
    examples: set[str] = field(default_factory=set)
    """That few-shot examples may come from."""


class TaskRefusedError(Exception):
    """A task that cannot be measured; the message says why."""


def main(request: dict[str, Any]) -> dict[str, Any]:
    """`{"tasks": {name: {...}}, "errors": {name: sentence}}`; nothing is loaded when a name is wrong.

    Args:
        request: `names`, `limit` (items a task, or null) and `folder`, where each task gets its own.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    known = installed(manager)
    errors = {
        name: message
        for name in request["names"]
        if (message := unknown_task_message(name, known))
    }
    tasks: dict[str, Any] = {}
    if errors or request.get("names_alone"):
        return {"tasks": tasks, "errors": errors}
    for name in request["names"]:
        try:
            tasks[name] = _stored(manager, name, request["limit"], Path(request["folder"]) / name)
        except TaskRefusedError as error:
            errors[name] = str(error)
        except Exception as error:  # the harness and the hub raise anything
            lines = str(error).strip().splitlines() or [type(error).__name__]
            errors[name] = (
                f"its data cannot be read ({lines[0][:160]}); check the network and the credentials, or give the "
                "task a source of your own"
            )
    return {"tasks": tasks, "errors": errors}


def by_size(loaded: Any, name: str) -> bool:
    """Whether a group's score is the mean over all items; else it is the mean over its tasks."""
    group = loaded["groups"].get(name)
    measures = (group.aggregate_metric_list or ()) if group is not None else ()
    return all(measure.weight_by_size for measure in measures)


def chosen_documents(loaded: Any, name: str, limit: int | None) -> dict[str, list[int]]:
    """For each task of a task, group or tag the places of the documents that are measured."""
    tasks = loaded["tasks"]
    sizes = [len(task.eval_docs) for task in tasks.values()]
    given = shares(sizes, limit, by_size=by_size(loaded, name))
    return {leaf: spread(size, count) for leaf, size, count in zip(tasks, sizes, given, strict=True) if count}


def _stored(manager: Any, name: str, limit: int | None, folder: Path) -> dict[str, Any]:
    calls: list[_Loaded] = []
    loaded = _loaded(manager, name, calls)
    for leaf, task in loaded["tasks"].items():
        _check(leaf, task)
        _note_splits(task, calls)
    chosen = chosen_documents(loaded, name, limit)
    data = TaskData(
        name=name,
        folders=tuple(sorted(_folders(manager, [name, *loaded["groups"], *loaded["tasks"]]))),
        datasets=tuple(_store(call, folder, number) for number, call in enumerate(calls)),
        resolved=tuple(dict.fromkeys(call.resolved for call in calls)),
    )
    write_bytes_atomically(folder / TASK_FILE, data.model_dump_json(indent=1).encode())
    items = [
        _item(task, task.eval_docs[place])
        for leaf, task in loaded["tasks"].items()
        for place in chosen.get(leaf, ())
    ]
    return {"items": items, "resolved": data.resolved}


def _loaded(manager: Any, name: str, calls: list[_Loaded]) -> Any:
    import datasets

    before = datasets.load_dataset

    def load_dataset(path: Any, name: Any = None, **options: Any) -> Any:
        key = call_key(path, name, options)
        known = next((call for call in calls if call.key == key), None)
        if known is None:
            pinned = options
            commit = _commit(path, options.get("revision"))
            if commit:
                pinned = options | {"revision": commit}
            try:
                data = before(path, name, **pinned)
            except RuntimeError as error:
                if _SCRIPTS not in str(error):
                    raise
                commit = _commit(path, CONVERTED) or CONVERTED
                data = before(path, name, **options | {"revision": commit})
            shown = f"hf://datasets/{path}"
            known = _Loaded(key, data, (shown, f"{shown}@{commit}" if commit else shown))
            calls.append(known)
        return known.data

    datasets.load_dataset = load_dataset
    try:
        return manager.load([name])
    finally:
        datasets.load_dataset = before


def _commit(path: Any, revision: str | None) -> str | None:
    """The immutable revision of a repository; None for a builder of the library or a folder of this machine."""
    if not isinstance(path, str) or path.count("/") != 1 or Path(path).exists():
        return None
    from huggingface_hub import HfApi

    commit: str | None = HfApi().dataset_info(path, revision=revision).sha
    return commit


def _check(leaf: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskRefusedError(
            f"{leaf} runs code that the model writes, which dapt does not do; name another task"
        )
    if getattr(task, "MULTIMODAL", False):
        raise TaskRefusedError(f"{leaf} shows pictures or sound, and the model reads text; name another task")
    measures = list(task.aggregation())
    if not any(measure in METRICS for measure in measures):
        raise TaskRefusedError(
            f"none of the measures of {leaf} ({', '.join(measures)}) is a share of right answers; dapt reads "
            f"{', '.join(METRICS)}: name another task"
        )


def _note_splits(task: Any, calls: Iterable[_Loaded]) -> None:
    call = next((call for call in calls if call.data is task.dataset), None)
    if call is None:
        return
    config = task.config
    evaluated = config.test_split or config.validation_split
    if evaluated is None:
        call.splits.update(call.data)
        return
    call.splits.add(evaluated)
    few_shot = getattr(getattr(task, "fewshot_cfg", None), "split", None)
    others = (config.training_split, config.validation_split, config.fewshot_split, few_shot)
    call.examples.update(split for split in others if split)


def _store(call: _Loaded, folder: Path, number: int) -> StoredDataset:
    import datasets

    whole = not isinstance(call.data, datasets.DatasetDict)
    splits = {"all": call.data} if whole else dict(call.data)
    wanted = call.splits | call.examples
    if not whole and wanted <= splits.keys() and wanted:
        splits = {split: data for split, data in splits.items() if split in wanted}
    stored = []
    for split, data in splits.items():
        if split in call.examples - call.splits and len(data) > FEW_SHOT_ROWS:
            data = data.select(spread(len(data), FEW_SHOT_ROWS))
        place = f"{number}/{split}"
        target = folder / place
        data.flatten_indices().save_to_disk(str(target))
        digest = hashlib.sha256()
        for file in sorted(target.glob("*.arrow")):
            digest.update(file.read_bytes())
        stored.append((split, StoredSplit(folder=place, rows=len(data), sha256=digest.hexdigest())))
    return StoredDataset(call=call.key, splits=tuple(stored), whole=whole)


def _folders(manager: Any, names: Iterable[str]) -> set[str]:
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    entries = (manager.task_index.get(name) for name in names)
    paths = (Path(entry.yaml_path) for entry in entries if entry is not None and entry.yaml_path)
    return {path.parent.relative_to(root).as_posix() for path in paths}


def _item(task: Any, document: Any) -> tuple[str, str, list[str]]:
    """Question, right answer and all answers of a document, as texts where there are texts."""
    choices = _choices(task, document)
    target = task.doc_to_target(document)
    answer = target if isinstance(target, str) else ""
    listed = task.doc_to_choice(document) if task.config.doc_to_choice is not None else []
    if isinstance(target, str) and target in listed:
        target = listed.index(target)
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < len(choices):
        answer = choices[target]
    return _question(task, document), answer, choices


def _question(task: Any, document: dict[str, Any]) -> str:
    lower = {key.lower(): value for key, value in document.items()}
    found = next((lower[key] for key in _QUESTIONS if isinstance(lower.get(key), str) and lower[key]), None)
    return found if found is not None else str(task.doc_to_text(document))


def _choices(task: Any, document: dict[str, Any]) -> list[str]:
    listed = list(task.doc_to_choice(document)) if task.config.doc_to_choice is not None else []
    if all(isinstance(choice, str) and len(choice) > 1 for choice in listed):
        return listed
    # The task shows letters: the texts behind them are a list, or fields that count on.
    given = document.get("choices") or document.get("endings") or document.get("options")
    if isinstance(given, dict):
        given = given.get("text") or list(given.values())
    if not isinstance(given, list):
        given = [document[key] for key in sorted(document) if key[:-1] in ("ending", "op", "option")]
    fits = len(given) == len(listed) and all(isinstance(choice, str) for choice in given)
    return given if fits else listed


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
