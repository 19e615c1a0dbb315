"""Tests that the examples of docs/finetuning.md are read as the page describes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from dapt_operator.cli.commands.lint import lint
from dapt_trainer.data.input_problems import Problems
from dapt_trainer.data.items.tuning_data import read_instructions, read_preferences

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "finetuning.md").read_text()
EXAMPLES = dict(re.findall(r"```json (\w+)\n(.*?)```", PAGE, flags=re.DOTALL))


def read(name: str, tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "data.jsonl"
    path.write_text(EXAMPLES[name])
    problems = Problems()
    uri = f"file://{path}"
    if name == "preference":
        found = read_preferences(uri, "spec.preference.data[0]", problems)
    else:
        found = read_instructions(uri, name, "spec.finetuning.data[0]", problems)
    problems.raise_if_any()
    return list(found.records)


def test_every_format_of_the_page_is_read(tmp_path: Path) -> None:
    assert set(EXAMPLES) == {"messages", "promptResponse", "plain", "preference"}
    (messages,) = read("messages", tmp_path)
    assert [message["role"] for message in messages["messages"]] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    asked = {"role": "user", "content": "What is A00?"}
    assert read("promptResponse", tmp_path) == [
        {"messages": [asked, {"role": "assistant", "content": "Cholera."}]}
    ]
    (plain,) = read("plain", tmp_path)
    assert plain["plain"] is True
    (pair,) = read("preference", tmp_path)
    assert pair["prompt"] == [asked]
    assert [message["role"] for message in (*pair["chosen"], *pair["rejected"])] == ["assistant"] * 2


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
