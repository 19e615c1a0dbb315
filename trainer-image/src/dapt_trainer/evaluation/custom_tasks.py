"""Reads custom tasks and probes from JSON lines. A line is checked and never evaluated as code.

A task's line is `{"question", "choices", "answer"}`, a probe's `{"prompt", "choices", "answer"}` or `{"prompt",
"order"}`; `answer` is the index of the right choice, from 0, or the choice itself. The harness' YAML of a task is
written here; YAML, templates and functions of others are never read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dapt_contract.base import JsonObject
from dapt_trainer.data.items.item_limits import spread
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.items import distinct_ids, item_id

_MAX_SHOWN_PROBLEMS = 5
_ORDER_EXAMPLE = '{"prompt": "...", "order": ["...", "..."]}'
_Content = TypeVar("_Content")


@dataclass(frozen=True)
class Question:
    """Holds one multiple-choice item."""

    id: str
    text: str
    choices: tuple[str, ...]
    answer: int
    """Index of the right choice."""


@dataclass(frozen=True)
class Ordering:
    """Holds one probe that puts continuations in order."""

    id: str
    text: str
    order: tuple[str, ...]
    """The likeliest first."""


def read_questions(path: Path, field: str, *, limit: int | None = None) -> tuple[Question, ...]:
    """Read the questions of a task.

    Args:
        path: of its JSON lines.
        field: of a line, which holds the question.
        limit: largest number, evenly over the file; None: all.

    Raises:
        InputError: the file is missing or empty, or a line is not a question; the first five bad lines are named.
    """
    contents = _read(path, lambda value: _question(value, field), _question_example(field))
    ids = distinct_ids(item_id(content) for content in contents)
    questions = [Question(id_, *content) for id_, content in zip(ids, contents, strict=True)]
    return tuple(questions[index] for index in spread(len(questions), limit))


def read_probe_lines(path: Path, *, limit: int | None = None) -> tuple[Question | Ordering, ...]:
    """Read the probes of a set, those that choose and those that order.

    Args:
        path: of its JSON lines.
        limit: largest number, evenly over the file; None: all.

    Raises:
        InputError: as `read_questions`.
    """
    contents = _read(path, _probe, f"{_question_example('prompt')} or {_ORDER_EXAMPLE}")
    ids = distinct_ids(item_id(content) for content in contents)
    probes = [
        Ordering(id_, *content) if len(content) == 2 else Question(id_, *content)
        for id_, content in zip(ids, contents, strict=True)
    ]
    return tuple(probes[index] for index in spread(len(probes), limit))


def _read(path: Path, parse: Callable[[object], _Content], example: str) -> list[_Content]:
    """Parse each line of a file; `parse` raises ValueError for a bad one."""
    try:
        # Not `splitlines`: a question may hold U+2028 and other characters that it takes for line breaks.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run prepare again") from error
    problems: list[str] = []
    contents: list[_Content] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            contents.append(parse(json.loads(line)))
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = len(problems) - _MAX_SHOWN_PROBLEMS
        raise InputError(
            *problems[:_MAX_SHOWN_PROBLEMS], *([f"{path}: and {more} more bad lines"] if more > 0 else [])
        )
    if not contents:
        raise InputError(f"{path}: no question in it; a line is {example}")
    return contents


def _question_example(field: str) -> str:
    return f'{{"{field}": "...", "choices": ["...", "..."], "answer": 0}}'


def _probe(value: object) -> tuple[str, tuple[str, ...], int] | tuple[str, tuple[str, ...]]:
    if not isinstance(value, dict) or "order" not in value:
        return _question(value, "prompt")
    text, order = value.get("prompt"), value["order"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"'prompt' is missing or empty; a line is {_ORDER_EXAMPLE}")
    if (
        not isinstance(order, list)
        or len(order) < 2
        or not all(isinstance(entry, str) and entry.strip() for entry in order)
        or len(set(order)) != len(order)
    ):
        raise ValueError("'order' must be a list of at least two different texts, none empty")
    return text, tuple(order)


def _question(value: object, field: str) -> tuple[str, tuple[str, ...], int]:
    if not isinstance(value, dict):
        raise ValueError(f"not an object; a line is {_question_example(field)}")
    text, choices, answer = value.get(field), value.get("choices"), value.get("answer")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field!r} is missing or empty; a line is {_question_example(field)}")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
        or len(set(choices)) != len(choices)
    ):
        raise ValueError("'choices' must be a list of at least two different texts, none empty")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(
            f"'answer' is {answer!r}; it must be one of the choices or its index, 0 to {len(choices) - 1}"
        )
    return text, tuple(choices), answer


def write_harness_task(folder: Path, name: str, questions: Sequence[Question], few_shot: int) -> None:
    """Write a task's questions and its YAML, which is JSON, so that no text can break out of it.

    Few-shot examples are drawn from the task's other questions.

    Raises:
        InputError: there are too few questions for the number of examples.
    """
    if few_shot >= len(questions):
        raise InputError(
            f"task {name}: fewShot {few_shot} needs more than {few_shot} questions, it has {len(questions)}; "
            "lower fewShot"
        )
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    rows = (
        {"id": question.id, "question": question.text, "choices": question.choices, "answer": question.answer}
        for question in questions
    )
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": few_shot,
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_bytes")
        ],
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task, indent=1))


def read_rows(path: Path) -> list[JsonObject]:
    """Return the questions that `write_harness_task` wrote, as the harness' templates take them."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
