"""Custom tasks and probes: JSON lines, checked, never evaluated.

A task's line is `{"question", "choices", "answer"}`, a probe's `{"prompt", "choices", "answer"}` or `{"prompt",
"order"}`; `answer` is the place of the right choice, counted from 0, or the choice itself. From a task we write the
harness' YAML ourselves; foreign YAML, templates and functions are never read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dapt_trainer.data.items.item_limits import spread
from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.items import distinct_ids, item_id

_SHOWN_PROBLEMS = 5
_ORDER = '{"prompt": "...", "order": ["...", "..."]}'
_Content = TypeVar("_Content")


@dataclass(frozen=True)
class Question:
    """One multiple-choice item."""

    id: str
    text: str
    choices: tuple[str, ...]
    answer: int
    """Place of the right choice."""


@dataclass(frozen=True)
class Ordering:
    """One probe that puts continuations in order."""

    id: str
    text: str
    order: tuple[str, ...]
    """The likeliest first."""


def read_questions(path: Path, field: str, *, limit: int | None = None) -> tuple[Question, ...]:
    """The questions of a task (`field` question); at most `limit` of them, evenly over the file.

    Raises:
        InputError: the file is missing or empty, or a line is not a question; the first five bad lines are named.
    """
    found = _read(path, lambda value: _question(value, field), _example(field))
    ids = distinct_ids(item_id(question) for question in found)
    questions = [Question(name, *question) for name, question in zip(ids, found, strict=True)]
    return tuple(questions[place] for place in spread(len(questions), limit))


def read_probe_lines(path: Path, *, limit: int | None = None) -> tuple[Question | Ordering, ...]:
    """The probes of a set, those that choose and those that order; at most `limit` of them, evenly over the file.

    Raises:
        InputError: as `read_questions`.
    """
    found = _read(path, _probe, f"{_example('prompt')} or {_ORDER}")
    ids = distinct_ids(item_id(content) for content in found)
    probes = [
        Ordering(name, *content) if len(content) == 2 else Question(name, *content)
        for name, content in zip(ids, found, strict=True)
    ]
    return tuple(probes[place] for place in spread(len(probes), limit))


def _read(path: Path, parse: Callable[[Any], _Content], example: str) -> list[_Content]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run prepare again") from error
    problems: list[str] = []
    found: list[_Content] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(parse(json.loads(line)))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        raise InputError(
            *problems[:_SHOWN_PROBLEMS], *([f"{path}: and {more} more bad lines"] if more > 0 else [])
        )
    if not found:
        raise InputError(f"{path}: no question in it; a line is {example}")
    return found


def _example(field: str) -> str:
    return f'{{"{field}": "...", "choices": ["...", "..."], "answer": 0}}'


def _probe(value: Any) -> tuple[str, tuple[str, ...], int] | tuple[str, tuple[str, ...]]:
    if not isinstance(value, dict) or "order" not in value:
        return _question(value, "prompt")
    text, order = value.get("prompt"), value["order"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"'prompt' is missing or empty; a line is {_ORDER}")
    if (
        not isinstance(order, list)
        or len(order) < 2
        or not all(isinstance(entry, str) and entry.strip() for entry in order)
        or len(set(order)) != len(order)
    ):
        raise ValueError("'order' must be a list of at least two different texts, none empty")
    return text, tuple(order)


def _question(value: Any, field: str) -> tuple[str, tuple[str, ...], int]:
    if not isinstance(value, dict):
        raise ValueError(f"not an object; a line is {_example(field)}")
    text, choices, answer = value.get(field), value.get("choices"), value.get("answer")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field!r} is missing or empty; a line is {_example(field)}")
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
            f"'answer' is {answer!r}; it must be one of the choices or its place, 0 to {len(choices) - 1}"
        )
    return text, tuple(choices), answer


def write_harness_task(folder: Path, name: str, questions: Sequence[Question], few_shot: int) -> None:
    """Write a task's questions and its YAML, which is JSON, so that no text can break out of it.

    Few-shot examples come from the task itself, the asked question left out.

    Raises:
        InputError: there are fewer questions than examples are wanted.
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
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
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
