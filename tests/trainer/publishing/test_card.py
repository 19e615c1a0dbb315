"""The card says what was measured and what the base model's card says, in metadata that the hub's own classes read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from dapt_trainer.publishing.card import BaseCard, model_card, read_base_card
from support.card_builders import measure, publish_config


def card_of(**changes: Any) -> str:
    config = publish_config("hf://org/clinical")
    return model_card(config.model_copy(update={"card": config.card.model_copy(update=changes)}))


def test_the_card_has_the_numbers_and_nothing_that_was_not_measured() -> None:
    card = card_of()
    assert "| domain perplexity | 20.086 | 12.182 |" in card
    assert "| codes (task) | domain | 50 | 0.300 ± 0.070 | 0.500 ± 0.070 |" in card
    assert "not meant for deployment" in card
    assert "- the domain has 745 tokens" in card
    assert "this model" not in card.split("## Training")[0].split("## Measurements")[1]


def test_the_hub_reads_base_data_sets_and_results() -> None:
    sources = ("hf://datasets/org/notes@abc/data/*.parquet", "file:///home/alice/notes.jsonl")
    card = card_of(domain_sources=sources, final=measure(2.0, 0.75), fine_tuned=True, sft_examples=7)
    data = ModelCard(card).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (
        "org/base",
        "transformers",
        "text-generation",
    )
    assert data.datasets == ["org/notes"]
    assert data.tags == ["domain-adaptation", "continued-pretraining", "sft"]
    found = [(result.dataset_name, result.metric_type, result.metric_value) for result in data.eval_results]
    assert found == [
        ("held-out domain text", "perplexity", 7.389),
        ("held-out general text", "perplexity", 7.389),
        ("codes (domain)", "accuracy", 0.75),
    ]


def test_no_path_of_a_machine_and_no_bucket_is_public() -> None:
    card = card_of(
        base_model="file:///home/alice/models/llama",
        domain_sources=("file:///home/alice/notes.jsonl", "s3://secret-bucket/team/reports/*.parquet"),
        tuning_sources=("pvc://claims/team/chat.jsonl",),
    )
    for private in ("alice", "secret-bucket", "/home", "pvc://", "team"):
        assert private not in card
    assert "- Domain source: `notes.jsonl`" in card
    assert "- Tuning source: `chat.jsonl`" in card
    assert ModelCard(card).data.base_model is None


def test_licence_and_language_are_the_base_models(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama3\nlicense_link: LICENSE\nlanguage: [en, de]\n---\n# Base\n"
    )
    base = read_base_card(tmp_path)
    assert base == BaseCard("other", "llama3", "LICENSE", ["en", "de"])
    data = ModelCard(model_card(publish_config("hf://org/clinical"), base)).data
    assert (data.license, data.license_name, data.language) == ("other", "llama3", ["en", "de"])
    assert read_base_card(tmp_path / "nowhere") == BaseCard()
    (tmp_path / "README.md").write_text("no metadata at all")
    assert read_base_card(tmp_path) == BaseCard()


def test_a_name_cannot_break_out_of_the_metadata() -> None:
    name = 'a"\nlicense: mit\n---'
    assert ModelCard(card_of(adaptation=name, base_model="hf://org/x: [y@abc")).data.license is None


def test_the_card_says_how_to_load_the_model_and_what_it_was_measured_with() -> None:
    card = card_of(context_length_tokens=4096)
    assert "Needs transformers 4.57 or later" in card
    assert 'name = "org/clinical"' in card
    assert "Each token has at most 4,096 tokens before it." in card
    assert "apply_chat_template" not in card
    assert "apply_chat_template" in card_of(fine_tuned=True, sft_examples=7)
