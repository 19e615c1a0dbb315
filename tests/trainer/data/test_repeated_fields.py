"""A record with a field twice is bad where the field matters: readers of JSON disagree on which of the two counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_contract.stages.tuning_data import InstructionSource, PreferenceInput
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.checked_records import CheckedSource
from dapt_trainer.data.items.tuning_records import TuningRecord, read_instructions, read_preferences
from dapt_trainer.data.reading.documents import BadRecord, read_documents
from dapt_trainer.data.reading.records import read_records
from dapt_trainer.data.reading.sources import ResolvedSource, resolve

TWICE = '{"text": "first", "text": "second"}'
HARMLESS = [
    '{"text": "a", "url": "x", "url": "y"}',  # not read from a corpus
    '{"kind": "text", "text": "a"}',
    '{"text": "she said \\"text\\": twice \\"text\\""}',
    '{"kind": "text", "text": "a", "url": 1, "url": 2}',
]


def source(tmp_path: Path, content: str, name: str = "r.jsonl") -> ResolvedSource:
    (tmp_path / name).write_text(content)
    return resolve(f"file://{tmp_path / name}", "F")


@pytest.mark.parametrize(
    ("name", "content"),
    [("r.jsonl", f'{{"text": "a"}}\n{TWICE}\n'), ("r.json", f'[{{"text": "a"}}, {TWICE}]')],
)
def test_a_document_with_its_text_twice_is_bad(tmp_path: Path, name: str, content: str) -> None:
    first, second = read_documents(source(tmp_path, content, name), "text")
    assert not isinstance(first, BadRecord)
    assert second == BadRecord(f"{tmp_path / name}:2", "has the field 'text' twice")


@pytest.mark.parametrize("line", HARMLESS)
def test_a_document_is_good_where_its_text_stands_once(tmp_path: Path, line: str) -> None:
    (document,) = read_documents(source(tmp_path, line), "text")
    assert not isinstance(document, BadRecord)


def test_an_item_with_a_field_twice_is_bad(tmp_path: Path) -> None:
    line = '{"question": "q", "choices": ["x", "y"], "answer": 0, "answer": 1}'
    assert list(read_records(source(tmp_path, line))) == [
        BadRecord(f"{tmp_path / 'r.jsonl'}:1", "has the field 'answer' twice")
    ]


def test_examples_and_pairs_with_a_field_twice_are_bad_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "i.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}\n'
        '{"prompt": "a", "response": "b", "tools": "[{\\"name\\": 1, \\"name\\": 2}]"}\n'
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}\n')
    instructions = read_instructions(
        InstructionSource(source=f"file://{tmp_path}/i.jsonl", format="messages"), "F", Problems()
    )
    pairs = read_preferences(PreferenceInput(source=f"file://{tmp_path}/p.jsonl"), "F", Problems())
    assert causes(instructions) == [
        "has the field 'content' twice; correct the line",
        "tools is not JSON (has the field 'name' twice)",
    ]
    assert causes(pairs) == ["has the field 'chosen' twice; correct the line"]


def causes(read: CheckedSource[TuningRecord]) -> list[str]:
    return [bad.cause for bad in read.bad]
