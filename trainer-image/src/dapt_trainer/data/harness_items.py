"""Items of tasks that lm-evaluation-harness ships: loaded where there is a network, so that evaluation can be offline.

`read_harness_items` runs this module in a process of its own, because the harness imports torch. Its data sets go into
`hf-cache/` on the work volume: HF_HOME of the stages that evaluate.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dapt_trainer.data.contamination import EvaluationItem
from dapt_trainer.data.helper import run_module
from dapt_trainer.errors import InputError


def read_harness_items(names: list[str], cache: Path, beat: Callable[[], None]) -> list[EvaluationItem]:
    """Questions and answers of the named tasks; their data sets are cached.

    Raises:
        InputError: a task is unknown, or its data set cannot be read.
    """
    items: list[EvaluationItem] = []
    problems: list[str] = []
    for name in names:
        result = _run(name, cache, beat)
        if "error" in result:
            problems.append(
                f"spec.evaluation: task {name!r} cannot be read by lm-evaluation-harness ({result['error']}); check "
                "the name and the network, or give the task a source of your own"
            )
        items += [EvaluationItem(name, question, answer) for question, answer in result.get("items", ())]
    if problems:
        raise InputError(*problems)
    return items


def _run(name: str, cache: Path, beat: Callable[[], None]) -> dict[str, Any]:
    cache.mkdir(parents=True, exist_ok=True)
    environment = {"HF_HOME": str(cache), "DATASETS_VERBOSITY": "error"}
    done = run_module("dapt_trainer.data.harness_items", [name], environment, beat)
    lines = done.output.strip().splitlines()
    if done.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    return {"error": done.last_error}


def load(name: str) -> dict[str, Any]:
    """`{"items": [[question, answer], ...]}` of one task or group of tasks, or `{"error": sentence}`."""
    from lm_eval.tasks import TaskManager

    try:
        tasks = TaskManager().load([name])["tasks"].values()
        items = []
        for task in tasks:
            for document in task.eval_docs:
                items.append([_question(task, document), _answer(task, document)])
    except Exception as error:  # the harness and the hub raise anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"error": lines[0][:160]}
    return {"items": items}


def _question(task: Any, document: Any) -> str:
    if isinstance(document, dict):
        for key in ("question", "query", "ctx", "sentence", "prompt"):
            if isinstance(document.get(key), str):
                return str(document[key])
    return str(task.doc_to_text(document))


def _answer(task: Any, document: Any) -> str:
    target = task.doc_to_target(document)
    if isinstance(target, int):
        choices = task.doc_to_choice(document)
        return str(choices[target]) if 0 <= target < len(choices) else ""
    return target if isinstance(target, str) else ""


if __name__ == "__main__":
    print(json.dumps(load(sys.argv[1])))
