"""A folder on the work volume is checked again wherever it is loaded: whoever can write there may have changed it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from dapt_trainer.errors import InputError
from support.hostile_models import INDEX, index, linked, pickled, settings, several, text
from support.toy_corpus import documents, train_tokenizer, write_model

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(documents(20))


def half(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (several(pickled, index(b="evil.bin")), f"{INDEX} names 'evil.bin', which is not the plain name"),
        (index(b="../a.safetensors"), f"{INDEX} names '../a.safetensors', which is not the plain name"),
        (several(pickled, settings("adapter_config.json", peft_type="LORA")), "holds a model and adapter_config.json"),
        (settings("config.json", auto_map={"AutoModel": "evil.M"}), "config.json asks for code from the model's"),
        (settings("config.json", _attn_implementation="org/evil"), "config.json asks for an implementation from else"),
        (settings("config.json", transformers_weights="adapter_model.bin"), "config.json names other weights than"),
        (settings("config.json", quantization_config={"quant_method": "awq"}), "config.json describes a quantized"),
        (text("config.json", "[]"), "config.json is not readable JSON (holds a list and not an object)"),
        (linked("chat_template.jinja", "{outside}"), "chat_template.jinja leads to "),
        (linked("model.safetensors", "{outside}"), "model.safetensors leads to "),
        (half, "model.safetensors is truncated or damaged (has "),
    ],
)  # fmt: skip
def test_a_changed_folder_is_refused_before_anything_is_loaded(
    tokenizer: Tokenizer, tmp_path: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    from dapt_trainer.modeling.stored_models.model_folder import check_model_folder

    model = write_model(tmp_path / "model", tokenizer)
    check_model_folder(model)
    spoil(model)
    with pytest.raises(InputError) as caught:
        check_model_folder(model)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{model}: {sentence}")


def test_a_tokenizer_that_names_code_is_not_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer

    model = write_model(tmp_path / "model", tokenizer)
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": ["evil.T", None]}))
    with pytest.raises(InputError, match=r"tokenizer_config\.json asks for code from the model's repository"):
        load_tokenizer(tmp_path)
