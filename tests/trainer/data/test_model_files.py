"""Tests which files of a base model's folder come along besides its weights, and so reach the published model."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapt_trainer.data.base_model.fetch import import_model
from dapt_trainer.data.base_model.files import is_small_file

TERMS = ("LICENSE", "LICENCE.md", "LICENSE-2.0.txt", "MODEL_LICENSE", "LICENSE AGREEMENT.txt", "COPYING", "Notice",
         "THIRD_PARTY_NOTICES.txt", "USE_POLICY.md", "USAGE-POLICY.md", "TERMS_OF_USE.md")  # fmt: skip
VOCABULARY = ("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/rag.jinja")
OTHERS = ("optimizer.pt", "trainer_state.json", "training_args.bin", "modeling_own.py", "noticeable.txt", "my.jinja",
          ".gitattributes", "onnx/model.onnx")  # fmt: skip


@pytest.mark.parametrize("name", [*TERMS, *VOCABULARY, *TEMPLATES])
def test_terms_vocabulary_and_templates_are_taken(name: str) -> None:
    assert is_small_file(name)


@pytest.mark.parametrize("name", OTHERS)
def test_what_no_user_of_the_model_needs_is_left(name: str) -> None:
    assert not is_small_file(name)


def test_files_are_taken_byte_for_byte(model: Path, tmp_path: Path) -> None:
    for name in (*TERMS, *VOCABULARY, *TEMPLATES, *OTHERS):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(f"of {name}")
    import_model(f"file://{model}", tmp_path / "made", tmp_path / "scratch")
    for name in (*TERMS, *VOCABULARY, *TEMPLATES):
        assert (tmp_path / "made" / name).read_text() == f"of {name}"
    assert not [name for name in OTHERS if (tmp_path / "made" / name).exists()]
