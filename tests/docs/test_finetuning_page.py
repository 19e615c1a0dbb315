"""Tests that the examples of docs/finetuning.md are read as the page describes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dapt_contract.stages.tuning_data import FieldNames, InstructionSource, PreferenceInput
from dapt_operator.api.v1alpha1.spec_training import FinetuningSource
from dapt_operator.cli.commands.lint import lint
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.tuning_records import TuningRecord, read_instructions, read_preferences

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "finetuning.md").read_text()
EXAMPLES = dict(re.findall(r"```json ([\w-]+)\n(.*?)```", PAGE, flags=re.DOTALL))
CHATS = sorted(name for name in EXAMPLES if name != "plain" and not name.startswith("preference"))
PAIRS = sorted(name for name in EXAMPLES if name.startswith("preference"))


def read(path: Path, kind: str, fields: FieldNames | None = None) -> TuningRecord:
    problems = Problems()
    uri = f"file://{path}"
    if kind == "preference":
        source = read_preferences(
            PreferenceInput(source=uri, fields=fields), "spec.preference.data[0]", problems
        )
    else:
        form: Any = "plain" if kind == "plain" else "messages"
        instructions = InstructionSource(source=uri, format=form, fields=fields)
        source = read_instructions(instructions, "spec.finetuning.data[0]", problems)
    source.report(problems)
    problems.raise_if_any()
    (record,) = source.values
    return record


def example(name: str, tmp_path: Path) -> TuningRecord:
    path = tmp_path / "data.jsonl"
    path.write_text(EXAMPLES[name])
    return read(path, "preference" if name.startswith("preference") else name)


@pytest.mark.parametrize("name", CHATS)
def test_every_format_of_chats_is_read(name: str, tmp_path: Path) -> None:
    (conversation,) = example(name, tmp_path).conversations
    assert conversation.messages[-1]["role"] == "assistant"
    assert str(conversation.messages[-1]["content"]) in ("Cholera.", "Typhoid and paratyphoid fevers.")
    assert any("A00" in str(message["content"]) for message in conversation.messages)


@pytest.mark.parametrize("name", PAIRS)
def test_every_format_of_pairs_is_read(name: str, tmp_path: Path) -> None:
    chosen, rejected = example(name, tmp_path).conversations
    assert chosen.messages[:-1] == rejected.messages[:-1]
    assert chosen.messages[-2] == {"role": "user", "content": "What is A00?"}
    assert str(chosen.messages[-1]["content"]).startswith("Cholera")
    assert "aper." in str(rejected.messages[-1]["content"])


def test_the_page_has_an_example_of_each_format_and_plain_text(tmp_path: Path) -> None:
    assert len(CHATS) == 9
    assert len(PAIRS) == 7
    plain = example("plain", tmp_path).plain
    assert plain is not None
    assert plain.text == "Diagnosis of A00: cholera"


def test_the_mapping_of_the_page_reads_what_it_names(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(data:.*?)```", PAGE, flags=re.DOTALL)
    dialogues, tickets = (FinetuningSource.model_validate(source) for source in yaml.safe_load(block)["data"])
    path = tmp_path / "data.jsonl"
    turns = [{"speaker": "patient", "utterance": "Hi"}, {"speaker": "doctor", "utterance": "Hello."}]
    path.write_text(json.dumps({"dialogue": turns, "setting": "Be kind."}))
    fields = FieldNames.model_validate(dialogues.fields.model_dump() if dialogues.fields else {})
    (conversation,) = read(path, "messages", fields).conversations
    assert [(message["role"], message["content"]) for message in conversation.messages] == [
        ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello."),
    ]  # fmt: skip
    path.write_text(json.dumps({"subject": "Printer", "body": "is on fire", "answer": "Run."}))
    fields = FieldNames.model_validate(tickets.fields.model_dump() if tickets.fields else {})
    (conversation,) = read(path, "messages", fields).conversations
    assert conversation.messages[0]["content"] == "Printer\n\nis on fire"


def test_the_manifest_of_the_page_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n# finetuning.yaml.*?\n(.*?)```", PAGE, flags=re.DOTALL)
    manifest = next(
        document
        for path in sorted((ROOT / "examples").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] == "DomainAdaptation"
    )
    manifest["spec"] |= yaml.safe_load(block)
    path = tmp_path / "adaptation.yaml"
    path.write_text(json.dumps(manifest))
    problems, good = lint([path], cluster=False)
    assert problems == []
    assert len(good) == 1
