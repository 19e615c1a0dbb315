"""The manifest and the data on the page about a first adaptation fit each other and are planned."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dapt_operator.cli.commands.lint import lint
from dapt_operator.cli.commands.plan import plan
from dapt_operator.cli.inputs.manifests import read_request
from support.model_headers import CONFIG, write_model

PAGE = (Path(__file__).parents[2] / "docs" / "first-adaptation.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:json|yaml) (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "general").mkdir()
    (tmp_path / "general" / "one.txt").write_text("something else\n" * 1000)
    write_model(tmp_path / "model", CONFIG | {"max_position_embeddings": 1024})
    path = tmp_path / "my.yaml"
    path.write_text(FILES["my.yaml"].replace("my-model.gguf", "model"))
    return path


def test_the_first_adaptation_has_no_problem(manifest: Path) -> None:
    assert lint([manifest]) == ([], [f"{manifest}: ok (DomainAdaptation git-manual)"])


def test_the_first_adaptation_is_planned_with_all_its_stages(manifest: Path) -> None:
    page = plan(read_request(manifest, None))
    assert page.problems == ()
    assert {"Pretraining", "Fine-tuning", "Preference tuning"} <= set(page.lines)


def test_the_first_adaptation_shows_records_of_json() -> None:
    data = {name: content for name, content in FILES.items() if name != "my.yaml"}
    assert set(data) == {"manual.jsonl", "instructions.json", "preferences.jsonl", "quiz.jsonl"}
    for name, content in data.items():
        record = json.loads(content)
        assert name.endswith(".jsonl") == isinstance(record, dict)
