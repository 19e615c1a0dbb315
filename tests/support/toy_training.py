"""A work volume as prepare leaves it, small enough to train on in seconds: a two-layer model and packed random text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dapt_contract.measure import Measure, Perplexity, Side, SidePerplexity
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile, write_report
from dapt_contract.stages import KINDS
from dapt_contract.stages.baseline import BaselineConfig, BaselineFacts, BaselineReport
from dapt_contract.stages.common import (
    DistributionConfig,
    EvaluationConfig,
    LoraConfig,
    ModelReference,
    OptimizerConfig,
    ScheduleConfig,
)
from dapt_contract.stages.prepare import ModelFacts, PrepareFacts, PrepareReport
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_contract.stop_rule import StopRule
from dapt_trainer.context import SilentProgress, StageContext
from dapt_trainer.data.packing.data_manifest import DataManifest, ShardManifest, write_manifest
from dapt_trainer.data.packing.held_out import HALVES, HeldOutDocument, read_held_out, write_held_out
from dapt_trainer.data.packing.shards import ShardWriter
from dapt_trainer.evaluation.base_model.document_losses import (
    LOSSES,
    DocumentLoss,
    losses_digest,
    write_losses,
)

VOCABULARY = 256
SEQUENCE_LENGTH = 32
END_OF_TEXT = 0
KEY = b"a key of the tests, which is as long as it must be"
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_work_volume(work: Path, *, sequences: int = 64, seed: int = 0, chat_template: bool = False) -> Path:
    """Model, tokenizer, two packed sources and held-out text."""
    make_model(work / "model", chat_template=chat_template)
    generator = np.random.default_rng(seed)
    shards = []
    sides: tuple[Side, ...] = ("domain", "general")
    for side in sides:
        shards.append(_make_shard(work, side, 0, sequences, generator))
        for half in HALVES:
            documents = [
                HeldOutDocument(ids=_document(generator, 12), bytes=24, text="held out") for _ in range(3)
            ]
            write_held_out(work / "held-out", side, half, documents)
    facts = PrepareFacts(
        model=ModelFacts(
            architecture="LlamaForCausalLM",
            parameters=1,
            hidden_size=32,
            layers=2,
            vocabulary_size=VOCABULARY,
            attention_heads=4,
            key_value_heads=2,
            intermediate_size=64,
            max_positions=128,
            tied_embeddings=True,
            has_chat_template=chat_template,
            revision="toy",
            digest="toy",
            weights_bytes=1,
        ),
        sources=(),
        sequence_length_tokens=SEQUENCE_LENGTH,
        domain_tokens=1,
        general_tokens=1,
        data_digest="",
    )
    manifest = DataManifest(
        config_digest="toy",
        data_digest="",
        sequence_length_tokens=SEQUENCE_LENGTH,
        token_type="uint16",
        end_of_text_id=END_OF_TEXT,
        document_boundaries=True,
        shards=tuple(shards),
        report=PrepareReport(facts=facts),
    ).with_digest()
    write_manifest(work / "data", manifest, run_key="toy")
    return work


def make_model(folder: Path, *, chat_template: bool = False, seed: int = 1) -> None:
    """A two-layer llama with tied embeddings and a byte-level tokenizer."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY + 4,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=END_OF_TEXT, eos_token_id=END_OF_TEXT, max_new_tokens=8
    )
    model.save_pretrained(folder)
    make_tokenizer(chat_template=chat_template).save_pretrained(folder)


def make_tokenizer(*, chat_template: bool = False) -> Any:
    """Byte-level BPE without merges: every byte is a token, and `<|end|>` is token 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0} | {letter: index + 1 for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def _document(generator: np.random.Generator, length: int) -> list[int]:
    """A walk: each token is near the one before, so there is something to learn."""
    steps = generator.integers(1, 4, size=length)
    return [int(token) for token in 1 + (generator.integers(0, VOCABULARY) + np.cumsum(steps)) % VOCABULARY]


def _make_shard(
    work: Path, side: Any, index: int, sequences: int, generator: np.random.Generator
) -> ShardManifest:
    name = f"{side}-{index}"
    with ShardWriter(
        work / "data" / name,
        sequence_length_tokens=SEQUENCE_LENGTH,
        token_type="uint16",
        end_of_text_id=END_OF_TEXT,
    ) as writer:
        for _ in range(sequences):
            cut = int(generator.integers(5, SEQUENCE_LENGTH - 5))
            tail = SEQUENCE_LENGTH - cut - int(generator.integers(0, 3))
            pieces = [
                np.array([*_document(generator, length - 1), END_OF_TEXT], dtype=np.uint16)
                for length in (cut, tail)
            ]
            writer.write_row(list(pieces))
        files = writer.close()
        filled = writer.filled_positions
    return ShardManifest(
        name=name,
        side=side,
        index=index,
        source=f"file:///{name}.jsonl",
        weight=1.0,
        sequences=sequences,
        tokens=filled,
        positions=sequences * SEQUENCE_LENGTH,
        filled_positions=filled,
        documents=2 * sequences,
        cut_documents=0,
        files=files,
    )


def pretrain_config(**changes: Any) -> PretrainConfig:
    """Six steps of four sequences with a checkpoint every two."""
    defaults: dict[str, Any] = {
        "model": ModelReference(weights="model"),
        "lora": LoraConfig(rank=4, alpha=8),
        "total_steps": 6,
        "checkpoint_steps": (2, 4, 6),
        "sequence_length_tokens": SEQUENCE_LENGTH,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "replay_fraction": 0.25,
        "optimizer": OptimizerConfig(learning_rate=5e-3),
        "schedule": ScheduleConfig(warmup_fraction=0.34),
        "distribution": DistributionConfig(zero_stage=2, precision="fp32"),
        "stop_rule": StopRule(max_increase_fraction=10.0, patience=2, hard_stop_factor=4.0),
        "base_general_perplexity": 260.0,
        "evaluation_context_length_tokens": SEQUENCE_LENGTH,
        "seed": 3,
    }
    return PretrainConfig(**(defaults | changes))


def one_rank() -> Any:
    """The only rank of a stage, on the CPU."""
    import torch

    from dapt_trainer.distributed import Ranks

    return Ranks(0, 0, 1, torch.device("cpu"))


_SIDES: tuple[Side, Side] = ("domain", "general")


def store_base_losses(work: Path) -> str:
    """Store a finished baseline whose loss is 3 nats a token on every document; return the digest of its losses."""
    losses = [
        DocumentLoss(side=side, half=half, tokens=document.scored_tokens, nats=3.0 * document.scored_tokens)
        for side in _SIDES
        for half in HALVES
        for document in read_held_out(work, side, half)
    ]
    config = BaselineConfig(
        model=ModelReference(weights="model"),
        evaluation=EvaluationConfig(context_length_tokens=SEQUENCE_LENGTH),
    )
    stage = make_context(work, work, config, kind="baseline").stage
    path = f"stages/{stage.run.lineage}/try-1/{LOSSES}"
    write_losses(work / path, losses)
    part = Perplexity(nll_nats=3.0, tokens=1, bytes=1)
    side = SidePerplexity(a=part, b=part)
    facts = BaselineFacts(
        measure=Measure(digest="base", domain=side, general=side), losses_digest=losses_digest(losses)
    )
    write_report(work, stage, BaselineReport(facts=facts, losses_path=path))
    return facts.losses_digest


def make_context(
    work: Path,
    scratch: Path,
    config: Any,
    *,
    kind: str = "pretrain",
    try_number: int = 1,
    fence: int | None = None,
    progress: Any = None,
    rank: int = 0,
    world_size: int = 1,
) -> StageContext:
    """The context of one try; its fence is its number unless said otherwise."""
    assert kind in KINDS
    identity = RunIdentity(
        namespace="tests",
        name="toy",
        uid="0",
        stage=kind,
        attempt=1,
        try_number=try_number,
        fence=fence or try_number,
    )
    return StageContext(
        stage=StageFile(run=identity, kind=kind, config=config),
        work=work,
        scratch=scratch,
        progress=progress or SilentProgress(),
        rank=rank,
        local_rank=rank,
        world_size=world_size,
        signing_key=KEY,
    )


FILTERS = (
    # accelerate asks models for a property that transformers renamed
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)
"""Deprecations among the libraries themselves, for `pytestmark`."""
