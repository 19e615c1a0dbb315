"""What lies in a base model's folder is named as what it is: pointers, missing tokenizers, templates that are none."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dapt_trainer.data.base_model.facts import read_model_facts, read_tokenizer
from dapt_trainer.data.base_model.fetch import import_model
from dapt_trainer.data.chat.template_files import PLAIN_TEMPLATE, read_templates
from dapt_trainer.data.run_module import run_module
from dapt_trainer.errors import InputError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n"


def refused(model: Path, tmp_path: Path) -> str:
    with pytest.raises(InputError) as caught:
        import_model(f"file://{model}", tmp_path / "imported", tmp_path / "scratch")
    return str(caught.value).removeprefix(f"spec.model.source: file://{model}: ")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_clone_without_its_large_files_is_refused_by_the_pointer(
    model: Path, tmp_path: Path, name: str
) -> None:
    (model / name).write_text(POINTER)
    assert refused(model, tmp_path) == (
        f"{name} is a pointer of git-lfs, not the content; fetch it with `git lfs pull`"
    )


def test_a_model_without_any_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert refused(model, tmp_path) == (
        "no tokenizer there; add tokenizer.json, or the file that the model's tokenizer is in (tokenizer.model, vocab.json, vocab.txt, spiece.model, sentencepiece.bpe.model, tekken.json)"
    )


def test_a_model_of_no_named_architecture_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": None}))
    with pytest.raises(InputError, match=r"config\.json names no architectures; use a complete model folder"):
        read_model_facts(model, "s", has_chat_template=False)


@pytest.mark.parametrize("template", ["", [], {"default": ""}, [{"name": "default", "template": None}]])
def test_an_empty_template_is_none(model: Path, template: object) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    assert read_templates(model).templates == {"default": PLAIN_TEMPLATE}


def test_a_template_that_only_processors_read_is_none(model: Path) -> None:
    (model / "chat_template.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    assert not read_tokenizer(model, "s").has_chat_template


def test_the_cause_of_a_failed_step_is_its_exception_and_not_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text('raise ValueError("the cause\\n\\nYou may upgrade.")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_module("failing", [], {}, lambda: None).last_error == "ValueError: the cause"
