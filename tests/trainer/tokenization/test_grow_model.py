"""Matrices that grew with the tokenizer: values, padding, tied heads, biases, several files; and their reload."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from dapt_contract.stages.prepare import TokenizerExtensionConfig
from dapt_trainer.errors import InputError
from dapt_trainer.tokenization.extension import GrownTokenizer, grow_tokenizer
from dapt_trainer.tokenization.grow_in_prepare import write_grown_model
from dapt_trainer.tokenization.grow_model import GrowError, check_model, grow_model, read_extension
from dapt_trainer.tokenization.new_rows import constituent_mean_rows, random_rows
from support.toy_tokenizers import DOMAIN, TEXTS, byte_level, sentencepiece_bpe
from support.toy_training import FILTERS

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(text) for text in FILTERS)]

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
OLD = 420
"""Tokens of the byte-level tokenizer with the three that are added."""


@pytest.fixture(scope="module")
def grown() -> GrownTokenizer:
    extension = TokenizerExtensionConfig(vocabulary_size=20, minimum_frequency=20)
    return grow_tokenizer(byte_level(), lambda: DOMAIN, extension, source="file://m")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper's work in this process, which has torch already."""
    from dapt_trainer.data.run_module import FinishedProcess
    from dapt_trainer.tokenization import grow_in_prepare

    def run(_module: str, arguments: list[str], *_: object) -> FinishedProcess:
        try:
            grow_model(Path(arguments[1]), Path(arguments[2]))
        except GrowError as error:
            return FinishedProcess(1, "", str(error))
        return FinishedProcess(0, "", "")

    monkeypatch.setattr(grow_in_prepare, "run_module", run)


def save(folder: Path, config: Any, tokenizer_json: str | None = None, **saving: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, **saving)
    backend = Tokenizer.from_str(tokenizer_json or byte_level())
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(folder)
    return folder


def llama(**changes: Any) -> LlamaConfig:
    sizes = {"vocab_size": OLD, "num_key_value_heads": 1, "max_position_embeddings": 64}
    return LlamaConfig(**(SIZES | sizes | changes))


def mean(old: torch.Tensor, ids: tuple[int, ...]) -> torch.Tensor:
    total = torch.zeros_like(old[0], dtype=torch.float64)
    for number in ids:
        total += old[number].double()
    return (total / len(ids)).to(old.dtype)


def grow(base: Path, grown: GrownTokenizer) -> tuple[Any, Any]:
    target = base.parent / "grown"
    write_grown_model(base, target, grown, source="file://m")
    model, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return AutoModelForCausalLM.from_pretrained(base), model


def check(old: torch.Tensor, new: torch.Tensor, grown: GrownTokenizer, rows: int) -> None:
    assert new.shape == (rows, *old.shape[1:])
    assert new.dtype == old.dtype
    constituents = grown.constituents
    for number in range(rows):
        expected = mean(old, constituents[number]) if number in constituents else old[number]
        assert torch.allclose(new[number], expected, rtol=1e-2 if old.dtype == torch.bfloat16 else 1e-5), (
            number
        )


CONFIGS = {
    "llama-untied": (llama(tie_word_embeddings=False), {"lm_head.weight"}),
    "llama-tied": (llama(tie_word_embeddings=True), set()),
    "gemma-tied": (
        GemmaConfig(**SIZES, vocab_size=OLD, num_key_value_heads=1, head_dim=16, max_position_embeddings=64),
        set(),
    ),
    "gpt-neox": (GPTNeoXConfig(**SIZES, vocab_size=OLD, max_position_embeddings=64), {"embed_out.weight"}),
    "gpt2": (GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=OLD, n_positions=64), set()),
    "phi-with-head-bias": (PhiConfig(**SIZES, vocab_size=OLD), {"lm_head.weight", "lm_head.bias"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_both_matrices_grow_by_the_means_of_constituents(
    tmp_path: Path, grown: GrownTokenizer, in_process: None, name: str
) -> None:
    config, heads = CONFIGS[name]
    base, model = grow(save(tmp_path / "base", config), grown)
    assert model.config.vocab_size == OLD + 20
    check(base.get_input_embeddings().weight, model.get_input_embeddings().weight, grown, OLD + 20)
    old_head, new_head = base.get_output_embeddings(), model.get_output_embeddings()
    check(old_head.weight, new_head.weight, grown, OLD + 20)
    if getattr(old_head, "bias", None) is not None:
        check(old_head.bias, new_head.bias, grown, OLD + 20)
    stored = set(load_file(tmp_path / "grown" / "model.safetensors"))
    assert stored == set(load_file(tmp_path / "base" / "model.safetensors"))
    assert heads <= stored
    tied = new_head.weight is model.get_input_embeddings().weight
    assert tied == (not heads)


def test_padding_rows_are_used_first_and_found_by_id(
    tmp_path: Path, grown: GrownTokenizer, in_process: None
) -> None:
    base, model = grow(save(tmp_path / "base", llama(vocab_size=432)), grown)
    assert model.config.vocab_size == OLD + 20  # 12 rows of padding were there for the first of them
    check(base.lm_head.weight, model.lm_head.weight, grown, OLD + 20)


def test_a_matrix_padded_beyond_all_new_tokens_keeps_its_size(
    tmp_path: Path, grown: GrownTokenizer, in_process: None
) -> None:
    base, model = grow(save(tmp_path / "base", llama(vocab_size=512)), grown)
    assert model.config.vocab_size == 512
    check(base.model.embed_tokens.weight, model.model.embed_tokens.weight, grown, 512)
    check(base.lm_head.weight, model.lm_head.weight, grown, 512)


def test_bfloat16_in_several_files_stays_so(tmp_path: Path, grown: GrownTokenizer, in_process: None) -> None:
    base = save(tmp_path / "base", llama(dtype="bfloat16"), max_shard_size="30KB")
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(files) > 2
    old, model = grow(base, grown)
    assert sorted(path.name for path in (tmp_path / "grown").glob("*.safetensors")) == files
    assert model.dtype == torch.bfloat16
    check(old.lm_head.weight, model.lm_head.weight, grown, OLD + 20)
    shared = [name for name in files if (base / name).samefile(tmp_path / "grown" / name)]
    assert len(shared) == len(files) - 2, "only the files of the two matrices are written anew"
    index = json.loads((tmp_path / "grown" / "model.safetensors.index.json").read_text())
    before = json.loads((base / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"]["total_size"] - before["metadata"]["total_size"] == pytest.approx(
        2 * 20 * 32 * 2, abs=64
    )


def test_names_without_the_prefix_of_the_core_are_found(
    tmp_path: Path, grown: GrownTokenizer, in_process: None
) -> None:
    base = save(tmp_path / "base", CONFIGS["gpt2"][0])
    tensors = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})
    old, model = grow(base, grown)
    check(old.transformer.wte.weight, model.transformer.wte.weight, grown, OLD + 20)


def test_the_base_model_is_not_touched(tmp_path: Path, grown: GrownTokenizer, in_process: None) -> None:
    base = save(tmp_path / "base", llama())
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    write_grown_model(base, tmp_path / "grown", grown, source="file://m")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_extension_json_lists_the_new_rows(tmp_path: Path, grown: GrownTokenizer, in_process: None) -> None:
    write_grown_model(save(tmp_path / "base", llama()), tmp_path / "grown", grown, source="file://m")
    note = read_extension(tmp_path / "grown")
    assert note.ids == range(OLD, OLD + 20)
    assert dict(zip(note.ids, note.constituents, strict=True)) == grown.constituents


def test_an_embedding_shorter_than_the_vocabulary_is_refused(
    tmp_path: Path, grown: GrownTokenizer, in_process: None
) -> None:
    base = save(tmp_path / "base", llama(vocab_size=400))
    with pytest.raises(InputError) as caught:
        write_grown_model(base, tmp_path / "grown", grown, source="file://m")
    assert str(caught.value) == (
        "spec.model.tokenizer.extend: file://m cannot be extended: its embedding has 400 rows for 420 tokens; "
        "remove the field"
    )


CLASSES: dict[str, Callable[[], str]] = {
    "GPT2Tokenizer": byte_level,
    "Qwen2Tokenizer": byte_level,
    "GPTNeoXTokenizer": byte_level,
    "PreTrainedTokenizerFast": byte_level,
    "LlamaTokenizer": sentencepiece_bpe,
    "GemmaTokenizer": lambda: sentencepiece_bpe(metaspace=False),
}


@pytest.mark.parametrize("name", CLASSES)
def test_transformers_reads_the_grown_tokenizer_under_every_class_name(tmp_path: Path, name: str) -> None:
    """Some classes build their tokenizer from vocabulary and merges, and add the added tokens afterwards."""
    old_json = CLASSES[name]()
    extension = TokenizerExtensionConfig(vocabulary_size=20, minimum_frequency=20)
    grown = grow_tokenizer(old_json, lambda: DOMAIN, extension, source="file://m")
    settings = {"tokenizer_class": name, "chat_template": "{{ messages[0]['content'] }}<|end|>"}
    end = "<|end|>" if CLASSES[name] is byte_level else "</s>"
    settings |= dict.fromkeys(("eos_token", "pad_token", "bos_token", "unk_token", "mask_token"), end)
    if end == "</s>":
        settings |= {"bos_token": "<s>", "unk_token": "<unk>"}
    for folder, content in (("old", old_json), ("new", grown.tokenizer_json)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tokenizer.json").write_text(content)
        (tmp_path / folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (tmp_path / folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    old, new = (
        AutoTokenizer.from_pretrained(tmp_path / "old"),
        AutoTokenizer.from_pretrained(tmp_path / "new"),
    )
    assert new.chat_template == old.chat_template
    assert new.all_special_ids == old.all_special_ids
    assert len(new) == len(old) + 20
    assert {token: new.convert_tokens_to_ids(token) for token in old.get_vocab()} == old.get_vocab()
    for text in TEXTS:
        before, after = (one.encode(text, add_special_tokens=False) for one in (old, new))
        assert new.decode(after) == old.decode(before)
        assert [part for n in after for part in grown.constituents.get(n, (n,))] == before
    new.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [again.encode(text) for text in TEXTS] == [new.encode(text) for text in TEXTS]


def test_rows_are_means_of_the_untouched_matrix() -> None:
    matrix = torch.arange(12.0).reshape(4, 3)
    rows = constituent_mean_rows(matrix, [(0, 3), (1,), (2, 2, 1)])
    expected = [[4.5, 5.5, 6.5], [3.0, 4.0, 5.0], [5.0, 6.0, 7.0]]
    assert torch.allclose(rows, torch.tensor(expected))
    assert torch.equal(constituent_mean_rows(matrix.numpy(), [(1,)]), matrix[1:2])
    assert constituent_mean_rows(matrix.bfloat16(), [(0, 3)]).dtype == torch.bfloat16
    assert constituent_mean_rows(torch.tensor([1.0, 2.0, 6.0]), [(1, 2)]).tolist() == [4.0]
    with pytest.raises(ValueError, match=r"constituents \[4\] of a matrix with 4 rows"):
        constituent_mean_rows(matrix, [(4,)])
    with pytest.raises(ValueError, match=r"constituents \[\] of a matrix with 4 rows"):
        constituent_mean_rows(matrix, [()])


def test_random_rows_have_the_matrix_deviation_and_a_seed() -> None:
    matrix = torch.randn(500, 64, generator=torch.Generator().manual_seed(1)) * 0.02 + 5.0
    rows = random_rows(matrix, 400, seed=3)
    assert rows.shape == (400, 64)
    assert float(rows.std()) == pytest.approx(0.02, rel=0.05)
    assert abs(float(rows.mean())) < 1e-3
    assert torch.equal(rows, random_rows(matrix, 400, seed=3))
    assert not torch.equal(rows, random_rows(matrix, 400, seed=4))


def test_leftovers_of_other_formats_are_not_copied(
    tmp_path: Path, grown: GrownTokenizer, in_process: None
) -> None:
    base = save(tmp_path / "base", llama())
    for name in ("vocab.json", "merges.txt", "tokenizer.model"):
        shutil.copyfile(base / "config.json", base / name)
    write_grown_model(base, tmp_path / "grown", grown, source="file://m")
    kept = {path.name for path in (tmp_path / "grown").iterdir()}
    assert not kept & {"vocab.json", "merges.txt", "tokenizer.model"}
    assert {"config.json", "generation_config.json", "tokenizer_config.json", "extension.json"} <= kept


def test_a_head_that_is_missing_from_the_files_is_reported(tmp_path: Path) -> None:
    base = save(tmp_path / "base", llama())
    tensors = load_file(base / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GrowError, match=r"its weights have no tensor lm_head\.weight"):
        check_model(base, OLD)


def test_a_stored_copy_of_a_tied_head_is_extended_too(
    tmp_path: Path, grown: GrownTokenizer, in_process: None
) -> None:
    base = save(tmp_path / "base", llama(tie_word_embeddings=True))
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    write_grown_model(base, tmp_path / "grown", grown, source="file://m")
    after = load_file(tmp_path / "grown" / "model.safetensors")
    check(tensors["lm_head.weight"], after["lm_head.weight"], grown, OLD + 20)
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
