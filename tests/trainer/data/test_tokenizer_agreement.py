"""All stages read the same tokens: tokenizer.json decides where transformers would build a tokenizer of its own."""

# ruff: noqa: E501 (a sentence stands in one piece)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from dapt_trainer.data.base_model.check import begin_of_text_problem
from dapt_trainer.data.base_model.facts import read_tokenizer
from dapt_trainer.data.base_model.tokenizer_agreement import compare_tokenizers, settle_tokenizer
from support import toy_tokenizers
from support.toy_training import FILTERS

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
TEXT = "He said that it's 2024:\n  THEY'RE late, naïve café 12345"


def write(folder: Path, tokenizer_json: str, end: str, model_type: str = "llama", **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end} | settings))
    return folder


def with_begin(tokenizer_json: str) -> str:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return str(tokenizer.to_str())


@pytest.mark.parametrize(
    ("make", "end", "settings"),
    [
        (toy_tokenizers.byte_level, "<|end|>", {}),
        (toy_tokenizers.byte_level, "<|end|>", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        (toy_tokenizers.byte_level, "<|end|>", {"tokenizer_class": "LlamaTokenizerFast"}),
        (lambda: with_begin(toy_tokenizers.sentencepiece_bpe()), "</s>", {"tokenizer_class": "LlamaTokenizer"}),
        (toy_tokenizers.unigram, "</s>", {}),
    ],
)  # fmt: skip
def test_tokenizers_that_agree_are_left_as_they_are(
    tmp_path: Path, make: Any, end: str, settings: dict[str, Any]
) -> None:
    folder = write(tmp_path / "m", make(), end, **settings)
    before = (folder / "tokenizer_config.json").read_bytes()
    comparison = compare_tokenizers(folder, end, 512)
    assert comparison.difference == ""
    assert settle_tokenizer(folder, comparison, "s") == ("", "")
    assert (folder / "tokenizer_config.json").read_bytes() == before


@pytest.mark.parametrize(("model_type", "is_class_kept"), [("llama", False), ("qwen2", True)])
def test_tokenizer_json_decides_for_every_stage(tmp_path: Path, model_type: str, is_class_kept: bool) -> None:
    from transformers import AutoTokenizer

    from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer

    folder = write(
        tmp_path / "model",
        toy_tokenizers.byte_level(),
        "<|end|>",
        model_type,
        tokenizer_class="Qwen2Tokenizer",
    )
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    assert AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] != expected
    comparison = compare_tokenizers(folder, "<|end|>", 512)
    assert comparison.is_class_kept == is_class_kept
    problem, settled = settle_tokenizer(folder, comparison, "s")
    assert problem == ""
    assert settled.startswith(
        "The base model's tokenizer.json is used as it is (PreTrainedTokenizerFast), and the published model says so: Qwen2Tokenizer, which transformers chooses for it, makes "
    )
    assert ("takes Qwen2Tokenizer all the same" in settled) == is_class_kept
    assert load_tokenizer(tmp_path)(TEXT)["input_ids"] == expected


def test_a_token_beyond_the_embedding_that_files_name_cannot_be_settled(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", toy_tokenizers.byte_level(), "<|end|>", pad_token="[PAD]")
    problem, settled = settle_tokenizer(folder, compare_tokenizers(folder, "<|end|>", 420), "file:///m")
    assert settled == ""
    assert problem == (
        "spec.model.source: file:///m: the tokenizer that transformers makes of its files differs from tokenizer.json: TokenizersBackend adds the token '[PAD]' (420), beyond the 420 rows of the embedding; save the tokenizer again (AutoTokenizer.from_pretrained(...).save_pretrained(...)) if that is the model's, or correct its files"
    )


def test_a_special_token_of_the_class_alone_is_not_the_templates(tmp_path: Path) -> None:
    """The class has a `bos_token` of its own, which the template would write at inference and not in preparation."""
    folder = write(
        tmp_path / "m",
        toy_tokenizers.byte_level(),
        "<|end|>",
        "gpt2",
        tokenizer_class="GPT2Tokenizer",
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    )
    comparison = compare_tokenizers(folder, "<|end|>", 512)
    assert comparison.difference == "has the bos_token '<|endoftext|>' where the files have None"
    assert comparison.is_settled_by_file


def test_files_that_disagree_about_the_first_token_are_refused(tmp_path: Path) -> None:
    tokenizer_json = with_begin(toy_tokenizers.sentencepiece_bpe())
    folder = write(tmp_path / "m", tokenizer_json, "</s>", add_bos_token=False)
    assert begin_of_text_problem(read_tokenizer(folder, "s"), "file:///m") == (
        "spec.model.source: file:///m: tokenizer_config.json has add_bos_token: false, but tokenizer.json puts '<s>' before every text; correct the one that is wrong for the model"
    )
    folder = write(tmp_path / "m", tokenizer_json, "</s>", add_bos_token=True)
    assert begin_of_text_problem(read_tokenizer(folder, "s"), "file:///m") == ""
