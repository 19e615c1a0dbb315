"""Tests the ways of writing an item that people have: where its choices and its answer stand, and what is refused."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.custom_items import ChoiceItem, Kind, read_items

CHOICES = ["io", "cmp", "txtar", "heap"]
ARC = {"text": ["sun", "moon", "star"], "label": ["A", "B", "C"]}


def read(tmp_path: Path, *records: Any, kind: Kind = "task") -> tuple[list[Any], list[str]]:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    problems = Problems()
    items = list(read_items(kind, f"file://{path}", "spec.evaluation.domain.tasks[t]", problems).values)
    return items, [sentence.replace(str(path), "FILE") for sentence in problems.sentences()]


@pytest.mark.parametrize(
    "fields",
    [
        {"choices": CHOICES, "answer": 1},
        {"choices": CHOICES, "answer": 1.0},
        {"choices": CHOICES, "answer": "1"},
        {"choices": CHOICES, "answer": "B"},
        {"choices": CHOICES, "answer": "b"},
        {"choices": CHOICES, "answer": " B. "},
        {"choices": CHOICES, "answer": "(B)"},
        {"choices": CHOICES, "answer": "B)"},
        {"choices": CHOICES, "answer": "cmp"},
        {"choices": CHOICES, "answerKey": "B"},
        {"choices": CHOICES, "target": 1},
        {"choices": CHOICES, "gold": "cmp", "answer": None},
        {"choices": CHOICES, "label": "1"},
        {"choices": CHOICES, "answer": "B", "answer_index": 1, "label": "biology", "category": "x"},
        {"options": CHOICES, "answer": "B"},
        {"options": dict(zip("ABCD", CHOICES, strict=True)), "answer": "cmp", "answer_idx": "B"},
        {"choices": dict(zip("ABCDE", [*CHOICES, None], strict=True)), "answer": "B"},
        {"choices": {"text": CHOICES, "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
        {"choices": {"text": CHOICES, "label": ["1", "2", "3", "4"]}, "answerKey": "2"},
        {"choices": [{"label": label, "text": text} for label, text in zip("ABCD", CHOICES, strict=True)], "answer": "B"},
        {"options": [{"key": key, "value": text} for key, text in zip("ABCD", CHOICES, strict=True)], "answer_idx": "B"},
        {"choices": {"text": CHOICES, "label": [1, 2, 3, 4]}, "answerKey": "2"},
        {"choices": CHOICES, "options": CHOICES, "answer": "B"},
    ],
)  # fmt: skip
def test_an_answer_is_read_however_it_is_written(tmp_path: Path, fields: dict[str, Any]) -> None:
    items, problems = read(tmp_path, {"question": "which?", "id": 3} | fields)
    assert problems == []
    assert items == [ChoiceItem("task", "which?", tuple(CHOICES), 1)]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"choices": CHOICES, "answer": "E"}, "answer 'E' is not an index from 0 to 3, nor one of the choices, nor one of A to D; correct it"),
        ({"choices": CHOICES, "answer": 4}, "answer 4 is not an index from 0 to 3, nor one of the choices, nor one of A to D; correct it"),
        ({"choices": CHOICES, "answer": -1}, "answer -1 is not an index from 0 to 3, nor one of the choices, nor one of A to D; correct it"),
        ({"choices": CHOICES, "answer": True}, "answer True is not an index from 0 to 3, nor one of the choices, nor one of A to D; correct it"),
        ({"choices": CHOICES, "answer": ["B"]}, "answer ['B'] is not an index from 0 to 3, nor one of the choices, nor one of A to D; correct it"),
        ({"choices": ARC, "answerKey": "D"}, "answerKey 'D' is not an index from 0 to 2, nor one of the choices, nor one of A, B, C; correct it"),
        ({"choices": ["3", "1", "2"], "answer": "1"}, None),
        ({"choices": ["2", "3", "4"], "answer": "2"}, "answer '2' can be read as choice 0 (its text) and choice 2 (its index); write the index, from 0, as a number"),
        ({"choices": ["B", "A", "O"], "answer": "A"}, "answer 'A' can be read as choice 0 (its letter) and choice 1 (its text); write the index, from 0, as a number"),
        ({"choices": {"text": CHOICES, "label": ["1", "2", "3", "4"]}, "answer": 2}, "answer 2 can be read as choice 1 (its label) and choice 2 (its index); write the index, from 0, as a number"),
        ({"choices": CHOICES, "answer": "B", "answer_index": 2}, "answer 'B' and answer_index 2 name different choices; keep one of them"),
        ({"choices": {"text": CHOICES, "label": ["A", "A", "B", "C"]}, "answer": "A"}, "field 'choices' is not a list of at least two texts; {accepted}"),
        ({"choices": {"text": CHOICES, "label": ["A", "B"]}, "answer": "A"}, "field 'choices' is not a list of at least two texts; {accepted}"),
        ({"choices": [" b", " a"], "answer": "b"}, "answer 'b' can be read as choice 0 (its text) and choice 1 (its letter); write the index, from 0, as a number"),
        ({"choices": CHOICES, "options": ["a", "b"], "answer": 0}, "its fields 'choices' and 'options' differ, keep one of them; {accepted}"),
        ({"choices": CHOICES, "answer": 0, "passage": "Read this."}, "field 'passage' belongs to the question and is not used; write it into 'question', or remove it"),
        ({"choices": CHOICES}, "no field 'answer' (its fields are question, choices); {accepted}"),
    ],
)  # fmt: skip
def test_an_answer_with_no_reading_or_two_is_refused(
    tmp_path: Path, fields: dict[str, Any], sentence: str | None
) -> None:
    items, problems = read(tmp_path, {"question": "which?"} | fields)
    if sentence is None:
        assert (len(items), problems) == (1, [])
        return
    accepted = 'a task item is {"question": text, "choices": [texts], "answer": index, letter or text}'
    assert problems == [
        f"spec.evaluation.domain.tasks[t]: FILE:1: {sentence.replace('{accepted}', accepted)}"
    ]


def test_a_cause_is_reported_once_with_a_count_and_the_first_place(tmp_path: Path) -> None:
    good = {"question": "which?", "choices": CHOICES, "answer": 0}
    records = [
        good,
        *({"question": "which?", "choices": CHOICES, "answer": n} for n in range(4, 9)),
        {"question": ""},
    ]
    _, problems = read(tmp_path, *records)
    assert problems == [
        "spec.evaluation.domain.tasks[t]: FILE:2: answer 4 is not an index from 0 to 3, nor one of the choices, nor one of A to D; correct it (4 more records have the same fault)",
        'spec.evaluation.domain.tasks[t]: FILE:7: field \'question\' is empty or of the wrong type; a task item is {"question": text, "choices": [texts], "answer": index, letter or text}',
    ]


@pytest.mark.parametrize(
    ("answers", "counts_from_one"),
    [
        ([1, 2, 3, 4] * 3, True),
        (["1", "4", "3", "2"] * 3, True),
        ([1, 2, 4], False),  # too few to say so; the answer past the end is refused by itself
        ([1, 2, 3] * 11, True),  # four choices, and never the first: once in ten thousand sets of 33
        ([1, 2, 3] * 10, False),
        ([0, *[1, 2, 3] * 30], False),
        (["b", "c", "d"] * 30, False),
    ],
)
def test_answers_that_count_from_one_are_found(
    tmp_path: Path, answers: list[Any], counts_from_one: bool
) -> None:
    records = [
        {"question": f"which {n}?", "choices": CHOICES, "answer": answer} for n, answer in enumerate(answers)
    ]
    _, problems = read(tmp_path, *records)
    assert (
        f"spec.evaluation.domain.tasks[t]: none of {len(answers)} answers is 0, so they count from 1, but an index counts from 0; subtract 1, or give letters or the choices themselves"
        in problems
    ) == counts_from_one


def test_a_question_with_two_answers_is_named_by_both_lines(tmp_path: Path) -> None:
    item = {"question": "which?", "choices": CHOICES}
    _, problems = read(tmp_path, item | {"answer": 0}, item | {"answer": "io"}, item | {"answer": 2})
    assert problems == [
        "spec.evaluation.domain.tasks[t]: FILE:3: has the question and choices of line 1 with another answer; keep the right one"
    ]


def test_items_of_a_table_are_read_as_those_of_lines(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": "x", "question": "which?", "choices": ARC, "answerKey": "C"}] * 2
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "arc.parquet")
    problems = Problems()
    items = read_items("task", f"file://{tmp_path}/arc.parquet", "f", problems).values
    assert [item.answer for item in items if isinstance(item, ChoiceItem)] == [2, 2]
    assert not problems


def test_probes_take_letters_and_tables_with_empty_fields(tmp_path: Path) -> None:
    items, problems = read(
        tmp_path,
        {"prompt": "The sky is", "choices": [" blue", " green"], "answer": "A", "order": None},
        {"prompt": "A fever is", "order": [" bad", " good"], "choices": None, "answer": None},
        kind="probe",
    )
    assert problems == []
    assert [type(item).__name__ for item in items] == ["ChoiceItem", "OrderItem"]
