"""Preference pairs and plain examples: the form they are written in, what is left out, what is refused."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import TaskConfig
from dapt_contract.stages.tuning_data import InstructionSource, PreferenceInput
from dapt_trainer.data.dedup.contamination import EvaluationItem, contamination_index
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.tuning_data import read_preferences, without_items, without_repeats
from dapt_trainer.errors import InputError

FORM = 'a pair is {"prompt": text or messages, "chosen": text or messages, "rejected": text or messages}'


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [message("user", prompt)],
        "chosen": [message("assistant", chosen)],
        "rejected": [message("assistant", rejected)],
    }


def read(tmp_path: Path, *records: Any) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    problems = Problems()
    lines = read_preferences(f"file://{path}", "spec.preference.data[0]", problems).records
    return lines, [sentence.replace(str(path), "FILE") for sentence in problems.sentences()]


def test_every_way_of_writing_a_pair_gives_the_same_lines(tmp_path: Path) -> None:
    expected = pair("Why?", "Because.", "No idea.")
    question = message("user", "Why?")
    written = [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea.", "score": 3},
        expected,
        expected | {"prompt": "Why?"},
        {key: [question, *expected[key]] if key != "prompt" else "Why?" for key in expected},
        {key: [question, *expected[key]] for key in ("chosen", "rejected")},
    ]
    lines, problems = read(tmp_path, *written)
    assert problems == []
    assert list(lines) == [expected] * 5


def test_a_conversation_of_several_turns_keeps_its_turns(tmp_path: Path) -> None:
    turns = [
        message("system", "Be brief."),
        message("user", "Hi"),
        message("assistant", "Hello."),
        message("user", "Why?"),
    ]
    answers = {
        "chosen": [message("assistant", "x"), message("user", "y"), message("assistant", "z")],
        "rejected": [message("assistant", "n")],
    }
    lines, problems = read(
        tmp_path, {"prompt": turns} | answers, {key: [*turns, *value] for key, value in answers.items()}
    )
    assert problems == []
    assert list(lines) == [{"prompt": turns} | answers] * 2


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"chosen": "a", "rejected": "b"}, f"no field 'prompt' (its fields are chosen, rejected), and 'chosen' and 'rejected' do not begin alike; {FORM}"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, f"field 'prompt' is empty or of the wrong type; {FORM}"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, f"field 'chosen' is empty or of the wrong type; {FORM}"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, f"field 'rejected' is empty or of the wrong type; {FORM}"),
        ({"prompt": "q", "chosen": "a"}, f"no field 'rejected' (its fields are prompt, chosen); {FORM}"),
        ({"prompt": "q", "chosen": [{"role": "bot", "content": "a"}], "rejected": "b"}, "chosen[0].role is 'bot'; accepted are system, user, assistant, tool"),
        ({"prompt": "q", "chosen": [{"role": "assistant", "content": " "}], "rejected": "b"}, f"chosen[0].content is not a text; {FORM}"),
        ({"prompt": [message("assistant", "q")], "chosen": "a", "rejected": "b"}, "the prompt ends with a message by 'assistant'; it must end with the user's"),
        ({"prompt": "q", "chosen": [message("user", "a")], "rejected": "b"}, "'chosen' must begin with the assistant's message, it is by 'user'"),
        ({"prompt": "q", "chosen": "a", "rejected": [message("assistant", "b"), message("user", "c")]}, "'rejected' must end with the assistant's message, it is by 'user'"),
        ({"prompt": "q", "chosen": [message("user", "q")], "rejected": "b"}, "'chosen' must begin with the assistant's message, it is none after the prompt"),
        ({"prompt": "q", "chosen": "Yes  sir", "rejected": "yes sir"}, "'chosen' and 'rejected' have the same text; a pair needs two different answers"),
        ("text", "not a JSON object but a string; correct the line"),
    ],
)  # fmt: skip
def test_a_bad_pair_is_reported_with_file_and_line(tmp_path: Path, record, sentence) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    lines, problems = read(tmp_path, good, record)
    assert list(lines) == [pair("q", "a", "b")]
    assert problems == [f"spec.preference.data[0]: FILE:2: {sentence}"]


def test_repeated_pairs_are_dropped_and_swapped_pairs_are_kept() -> None:
    first, again = pair("Why?", "Because.", "No."), pair("why?", " because.", "NO.")
    kept, repeats = without_repeats([first, again, pair("Why?", "No.", "Because.")])
    assert (kept, repeats) == ([first, pair("Why?", "No.", "Because.")], 1)


def test_items_are_found_in_prompt_and_answers() -> None:
    question = "which bone of the human arm is the longest one"
    index = contamination_index([EvaluationItem("bones", question, "humerus")])
    clean = pair("Which bone is longest?", "The femur.", "The stapes.")
    lines = [
        pair(f"Tell me {question}", "a", "b"),
        pair("Ask me something", f"Well: {question}?", "b"),
        clean,
        pair("Ask me something", "a", question.upper()),
    ]
    assert without_items(lines, index) == ([clean], 3)


def test_prepare_writes_pairs_once_and_without_items(config, prepare, tmp_path: Path) -> None:
    question = "which bone of the human arm is the longest one"
    task = tmp_path / "bones.jsonl"
    task.write_text(json.dumps({"question": question, "choices": ["humerus", "ulna"], "answer": 0}) + "\n")
    pairs = [("a", "b", "c"), ("A", "b", "c"), (question, "humerus", "ulna"), ("d", "e", "f")]
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in pairs)
    )
    config = config.model_copy(
        update={
            "tasks": (TaskConfig(name="bones", side="domain", source=f"file://{task}"),),
            "preferences": (PreferenceInput(source=f"file://{path}"),),
        }
    )
    report = prepare(config)
    assert report.facts.preference_pairs == 2
    lines = (tmp_path / "work/preferences/train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [pair("a", "b", "c"), pair("d", "e", "f")]
    assert (
        f"file://{path}",
        f"file://{path} (1 files, {path.stat().st_size} bytes)",
    ) in report.resolved_sources
    assert report.facts.warnings[-2:] == (
        "spec.preference.data: 1 of 4 pairs contain an evaluation item and are left out.",
        "spec.preference.data: 1 of 4 pairs repeat an earlier one and are learned from once.",
    )
    without = prepare(config.model_copy(update={"preferences": ()}), try_number=2)
    assert without.facts.data_digest != report.facts.data_digest
    assert not (tmp_path / "work/preferences").exists()


def test_pairs_that_are_all_items_end_the_stage(config, prepare, tmp_path: Path) -> None:
    question = "which bone of the human arm is the longest one"
    task = tmp_path / "bones.jsonl"
    task.write_text(json.dumps({"question": question, "choices": ["humerus", "ulna"], "answer": 0}) + "\n")
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": question, "chosen": "humerus", "rejected": "ulna"}) + "\n")
    tasks = (TaskConfig(name="bones", side="domain", source=f"file://{task}"),)
    preferences = (PreferenceInput(source=f"file://{path}"),)
    with pytest.raises(InputError) as caught:
        prepare(config.model_copy(update={"tasks": tasks, "preferences": preferences}))
    assert caught.value.problems == (
        "spec.preference.data: each of the 1 pairs contains an evaluation item; give others, or evaluate on other items",
    )


def test_examples_with_items_are_left_out(config, prepare, tmp_path: Path) -> None:
    question = "which bone of the human arm is the longest one"
    task = tmp_path / "bones.jsonl"
    task.write_text(json.dumps({"question": question, "choices": ["humerus", "ulna"], "answer": 0}) + "\n")
    path = tmp_path / "sft.jsonl"
    pairs = [("Tell me " + question, "The humerus."), ("Which bone is it?", "The femur.")]
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    changes = {
        "tasks": (TaskConfig(name="bones", side="domain", source=f"file://{task}"),),
        "instructions": (InstructionSource(source=f"file://{path}", format="promptResponse"),),
    }
    facts = prepare(config.model_copy(update=changes)).facts
    assert facts.instruction_examples == 1
    assert facts.warnings[-1] == (
        "spec.finetuning.data: 1 of 2 examples contain an evaluation item and are left out."
    )
    kept = prepare(config.model_copy(update=changes | {"decontaminate": False}), work=tmp_path / "other")
    assert kept.facts.instruction_examples == 2


def test_plain_examples_are_marked_and_keep_their_white_space(config, prepare, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"prompt": "Code of cholera: ", "response": "A00\n"}) + "\n")
    sources = (InstructionSource(source=f"file://{path}", format="plain"),)
    assert prepare(config.model_copy(update={"instructions": sources})).facts.instruction_examples == 1
    assert json.loads((tmp_path / "work/instructions/train.jsonl").read_text()) == {
        "plain": True,
        "messages": [message("user", "Code of cholera: "), message("assistant", "A00\n")],
    }
