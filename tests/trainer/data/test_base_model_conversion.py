"""Models that do not come as a folder with safetensors and tokenizer.json: converted in a process of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dapt_trainer.data.base_model.facts import read_model_facts, read_tokenizer
from dapt_trainer.data.base_model.fetch import import_model
from dapt_trainer.errors import InputError
from support import toy_gguf
from support.toy_corpus import documents, train_tokenizer, write_model
from support.toy_gguf import GgufSizes

pytestmark = pytest.mark.torch

HIDDEN, INNER, HEADS = 64, 128, 4


def write_gguf(path: Path) -> Path:
    """A llama of one layer with a byte-level tokenizer that ends texts with <|end|>."""
    tokenizer = train_tokenizer(documents(30))
    random = np.random.default_rng(1)
    shapes = {
        "model.embed_tokens": (tokenizer.get_vocab_size(), HIDDEN),
        **{f"model.layers.0.self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
        **{f"model.layers.0.mlp.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")},
        "model.layers.0.mlp.down_proj": (HIDDEN, INNER),
    }
    norms = ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm")
    tensors = {
        **{
            f"{name}.weight": random.standard_normal(shape).astype(np.float32) * 0.02
            for name, shape in shapes.items()
        },
        **{f"{name}.weight": np.ones(HIDDEN, np.float32) for name in norms},
    }
    sizes = GgufSizes(layers=1, heads=HEADS, key_value_heads=HEADS, context_tokens=128)
    return toy_gguf.write_gguf(path, tokenizer, tensors, sizes, end="<|end|>")


def test_a_gguf_file_becomes_a_plain_folder(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "toy.gguf")
    beats: list[int] = []
    import_model(f"file://{file}", tmp_path / "made", tmp_path / "scratch", lambda: beats.append(1))
    config = json.loads((tmp_path / "made/config.json").read_text())
    assert "quantization_config" not in config
    assert (tmp_path / "made/model.safetensors").is_file()
    tokenizer = read_tokenizer(tmp_path / "made", "toy")
    assert tokenizer.end_of_text == "<|end|>"
    assert tokenizer.has_chat_template
    facts = read_model_facts(tmp_path / "made", "toy", has_chat_template=True)
    assert (facts.hidden_size, facts.layers, facts.max_positions) == (HIDDEN, 1, 128)
    assert facts.weights_bytes == 2 * facts.parameters
    assert facts.revision == facts.digest
    assert beats

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made", use_safetensors=True)
    assert model.num_parameters() == facts.parameters


def test_a_file_that_is_not_gguf_is_refused_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "toy.gguf"
    file.write_bytes(b"GGUF, or so it says")
    with pytest.raises(InputError) as caught:
        import_model(f"file://{file}", tmp_path / "made", tmp_path / "scratch")
    (sentence,) = caught.value.problems
    assert sentence == (
        f"spec.model.source: file://{file}: toy.gguf is damaged or no model (its header is damaged); download it"
        " again, or use the model's safetensors version"
    )


def test_a_folder_with_two_gguf_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(InputError) as caught:
        import_model(f"file://{tmp_path}", tmp_path / "made", tmp_path / "scratch")
    assert str(caught.value) == (
        f"spec.model.source: file://{tmp_path} has 2 GGUF files (a.gguf, b.gguf); name one of them"
    )


def test_a_tokenizer_of_vocabulary_and_merges_is_made_fast(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(documents(30))
    model = write_model(tmp_path / "m", tokenizer)
    (model / "tokenizer.json").unlink()
    tokenizer.model.save(str(model))
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": "<|end|>",
        "bos_token": None,
        "unk_token": None,
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.rmtree(tmp_path / "made", ignore_errors=True)
    import_model(f"file://{model}", tmp_path / "made", tmp_path / "scratch")
    made = read_tokenizer(tmp_path / "made", "m")
    assert made.end_of_text == "<|end|>"
    assert made.begin_of_text_id is None
