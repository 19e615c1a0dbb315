"""A work volume with a toy model, held-out text, tasks and probes; everything is made from seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.toy_learning import learn_a_little

WORDS = (
    "red",
    "green",
    "blue",
    "cat",
    "dog",
    "bird",
    "runs",
    "sleeps",
    "eats",
    "slowly",
    "quickly",
    "under",
    "the",
)


def sentences(seed: int, count: int) -> list[str]:
    import random

    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 14))) + "." for _ in range(count)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def toy_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a work volume as prepare leaves it: do not write to it, copy it."""
    import torch
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from dapt_contract.stages.prepare import ModelFacts, PrepareFacts, PrepareReport
    from dapt_trainer.data.packing.data_manifest import DataManifest, write_manifest
    from dapt_trainer.data.packing.held_out import HeldOutDocument, write_held_out

    work = tmp_path_factory.mktemp("work")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        sentences(0, 200), vocab_size=330, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bpe.to_str()), eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.save_pretrained(work / "model")
    for seed, name in enumerate(("model", "tuned")):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
            bos_token_id=None, eos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        learn_a_little(model, tokenizer, sentences(90, 48), steps=20)
        model.save_pretrained(work / name)
        tokenizer.save_pretrained(work / name)
    for seed, (side, half) in enumerate(
        [("domain", "a"), ("domain", "b"), ("general", "a"), ("general", "b")]
    ):
        documents = [
            HeldOutDocument(tokenizer.encode(text), len(text.encode()), text)
            for text in sentences(10 + seed, 5)
        ]
        write_held_out(work / "held-out", side, half, documents)  # type: ignore[arg-type]
    facts = PrepareFacts(
        model=ModelFacts(
            architecture="LlamaForCausalLM", parameters=1, hidden_size=32, layers=2, vocabulary_size=330,
            attention_heads=4, key_value_heads=2, intermediate_size=48, max_positions=128, tied_embeddings=False,
            has_chat_template=False, revision="r", digest="d", weights_bytes=1,
        ),
        sources=(), sequence_length_tokens=64, domain_tokens=1, general_tokens=1, data_digest="sha256:0",
    )  # fmt: skip
    manifest = DataManifest(
        config_digest="sha256:0", data_digest="sha256:0", sequence_length_tokens=64, token_type="uint16",
        end_of_text_id=0, document_boundaries=True, shards=(), report=PrepareReport(facts=facts),
    )  # fmt: skip
    write_manifest(work / "data", manifest, run_key="")
    write_lines(work / "tasks" / "animals.jsonl", questions(240, "question"))
    write_lines(work / "tasks" / "colours.jsonl", questions(12, "question"))
    write_lines(work / "probes" / "facts.jsonl", questions(10, "prompt"))
    return work


def questions(count: int, field: str) -> list[dict[str, Any]]:
    """Multiple-choice items with three choices of different lengths."""
    return [
        {
            field: f"item {i}: {text}",
            "choices": ["red cat", "a bird sleeps under the", "dog"],
            "answer": ("red cat", 1, 2)[i % 3],
        }
        for i, text in enumerate(sentences(50, count))
    ]
