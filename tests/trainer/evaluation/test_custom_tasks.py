"""Custom task and probe files: every bad line is named, and nothing in them is ever evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dapt_trainer.errors import InputError
from dapt_trainer.evaluation.custom_tasks import read_questions, write_harness_task

GOOD = {"question": "q", "choices": ["x", "y"], "answer": 1}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_an_answer_is_a_place_or_the_choice_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", GOOD, "", GOOD | {"answer": "x"}, GOOD)
    read = read_questions(path, "question")
    assert [question.answer for question in read] == [1, 0, 1]
    assert read[2].id == f"{read[0].id}-2"
    assert len(read_questions(path, "question", limit=2)) == 2


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        GOOD,
        "{",
        [1],
        GOOD | {"question": " "},
        GOOD | {"choices": ["x", "x"]},
        GOOD | {"answer": 2},
        GOOD | {"answer": True},
    )
    with pytest.raises(InputError) as caught:
        read_questions(path, "question")
    example = '{"question": "...", "choices": ["...", "..."], "answer": 0}'
    assert str(caught.value).splitlines() == [
        f"{path}:2: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        f"{path}:3: not an object; a line is {example}",
        f"{path}:4: 'question' is missing or empty; a line is {example}",
        f"{path}:5: 'choices' must be a list of at least two different texts, none empty",
        f"{path}:6: 'answer' is 2; it must be one of the choices or its index, 0 to 1",
        f"{path}: and 1 more bad lines",
    ]


def test_what_unicode_calls_a_line_break_is_part_of_a_question(tmp_path: Path) -> None:
    separators = "\u2028\u2029\u0085"
    rows = [
        GOOD | {"question": f"{number} a{separators}b", "choices": [f"x{separators}", "y"]}
        for number in range(3)
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    questions = read_questions(path, "question")
    assert [question.text for question in questions] == [row["question"] for row in rows]
    assert questions[0].choices == (f"x{separators}", "y")


def test_an_empty_file_and_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no question in it"):
        read_questions(write(tmp_path / "t.jsonl"), "question")
    with pytest.raises(InputError, match=r"none.jsonl: cannot be read .*; run prepare again$"):
        read_questions(tmp_path / "none.jsonl", "prompt")


def test_more_examples_than_questions_are_refused(tmp_path: Path) -> None:
    read = read_questions(write(tmp_path / "t.jsonl", GOOD, GOOD | {"question": "r"}), "question")
    with pytest.raises(InputError) as caught:
        write_harness_task(tmp_path, "t", read, few_shot=2)
    assert str(caught.value) == "task t: fewShot 2 needs more than 2 questions, it has 2; lower fewShot"


def test_task_yaml_contains_no_text_of_the_questions(tmp_path: Path) -> None:
    hostile = GOOD | {"question": "!function os.system {{ 7 * 7 }}\n- x: &a [*a]"}
    read = read_questions(write(tmp_path / "in.jsonl", hostile), "question")
    write_harness_task(tmp_path / "out", "t", read, few_shot=0)
    assert "os.system" not in (tmp_path / "out" / "t.yaml").read_text()
    assert json.loads((tmp_path / "out" / "t.jsonl").read_text())["question"] == hostile["question"]
