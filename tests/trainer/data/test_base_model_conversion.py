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
from support.toy_corpus import documents, train_tokenizer, write_model

pytestmark = pytest.mark.torch

HIDDEN, INNER, HEADS = 64, 128, 4


def write_gguf(path: Path) -> Path:
    """A llama of one layer with a byte-level tokenizer that ends texts with <|end|>."""
    import gguf

    tokenizer = train_tokenizer(documents(30))
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(pieces))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([piece for piece, _ in pieces])
    writer.add_token_types([3 if piece == "<|end|>" else 1 for piece, _ in pieces])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    random = np.random.default_rng(1)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32) * 0.02)

    add("token_embd.weight", len(pieces), HIDDEN)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}.weight", HIDDEN, HIDDEN)
    for name in ("ffn_gate", "ffn_up"):
        add(f"blk.0.{name}.weight", INNER, HIDDEN)
    add("blk.0.ffn_down.weight", HIDDEN, INNER)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
