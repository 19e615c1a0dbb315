"""Which ZeRO stage and offload is chosen when the spec leaves it open, and what a refusal proposes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dapt_contract.chunked_loss import chunk_tokens
from dapt_contract.stages.common import DistributionConfig, LoraConfig
from dapt_operator.api.v1alpha1.spec_training import Regularization
from dapt_operator.plan.sizing.model_fit.batch import Batch, halved
from dapt_operator.plan.sizing.model_fit.memory import GIB
from dapt_operator.plan.sizing.model_fit.parallelism import (
    SharingRequest,
    choose_sharing,
    modes,
    smallest_sharing,
    what_would_fit,
)
from dapt_operator.plan.stage_parts.common import distribution
from support.builders import model_facts

LLAMA_8B = model_facts(
    parameters=8_030_261_248, hidden_size=4096, layers=32, vocabulary_size=128_256, attention_heads=32,
    key_value_heads=8, intermediate_size=14_336, tied_embeddings=False,
)  # fmt: skip

PENALTY = Regularization.model_validate({"ewc": {"strength": 1.0}})


def request(**over: Any) -> SharingRequest:
    """Full training of 8 B on 80 GB cards, micro-batch 1."""
    defaults: dict[str, Any] = {
        "model": LLAMA_8B, "lora": None, "kind": "gpu", "world_size": 8, "ranks_per_node": 8,
        "memory_limit_bytes": 80 * GIB, "host_memory_limit_bytes": 1024 * GIB, "precision": "bf16",
        "sequence_length_tokens": 4096, "micro_batch_sizes": (1,),
    }  # fmt: skip
    return SharingRequest(**(defaults | over))


def chosen(**over: Any) -> tuple[int, str, bool] | None:
    way = choose_sharing(request(**over))
    return None if way is None else (way.zero_stage, way.offload, way.gradient_checkpointing)


@pytest.mark.parametrize(
    ("over", "way"),
    [
        ({}, (2, "none", False)),
        ({"memory_limit_bytes": 48 * GIB}, (2, "none", True)),
        ({"memory_limit_bytes": 24 * GIB, "world_size": 16}, (3, "none", True)),
        ({"memory_limit_bytes": 24 * GIB, "world_size": 4, "ranks_per_node": 4}, (3, "optimizer", True)),
        ({"memory_limit_bytes": 12 * GIB, "world_size": 4, "ranks_per_node": 4}, (3, "all", True)),
        ({"world_size": 1, "ranks_per_node": 1}, (2, "optimizer", False)),
        ({"world_size": 1, "ranks_per_node": 1, "lora": LoraConfig(rank=64)}, (1, "none", False)),
        ({"lora": LoraConfig(rank=64)}, (1, "none", False)),
        ({"world_size": 64}, (1, "none", False)),
        ({"world_size": 64, "rank_batch_size": 1}, (2, "none", False)),
        ({"world_size": 1, "ranks_per_node": 1, "host_memory_limit_bytes": 100 * GIB}, None),
        ({"world_size": 1, "ranks_per_node": 1, "host_memory_limit_bytes": None}, None),
        ({"memory_limit_bytes": 24 * GIB, "world_size": 16, "may_spread": False}, None),
        ({"kind": "cpu", "precision": "fp32", "world_size": 1, "ranks_per_node": 1}, None),
    ],
)
def test_the_cheapest_way_in_communication_that_fits_is_chosen(
    over: dict[str, Any], way: tuple[int, str, bool] | None
) -> None:
    assert chosen(**over) == way


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({}, ((1, "none"), (2, "none"), (3, "none"), (2, "optimizer"), (3, "optimizer"), (3, "all"))),
        ({"world_size": 1}, ((1, "none"), (2, "optimizer"), (3, "optimizer"), (3, "all"))),
        ({"world_size": 1, "kind": "cpu", "precision": "fp32"}, ((0, "none"),)),
        ({"host_memory_limit_bytes": None}, ((1, "none"), (2, "none"), (3, "none"))),
        ({"kind": "cpu"}, ((1, "none"), (2, "none"), (3, "none"))),
        ({"may_spread": False}, ((1, "none"), (2, "none"))),
        ({"may_spread": False, "regularization": PENALTY}, ((2, "none"),)),
        ({"zero_stage": 1}, ((1, "none"), (1, "optimizer"))),
        ({"zero_stage": 0}, ((1, "none"), (1, "optimizer"))),
        ({"zero_stage": 0, "precision": "fp32"}, ((0, "none"),)),
        ({"zero_stage": 3}, ((3, "none"), (3, "optimizer"), (3, "all"))),
        ({"zero_stage": 3, "world_size": 1, "kind": "cpu"}, ((3, "none"),)),
        ({"zero_stage": 3, "offload": "none"}, ((3, "none"),)),
        ({"offload": "optimizer"}, ((2, "optimizer"), (3, "optimizer"))),
        ({"offload": "all", "host_memory_limit_bytes": None}, ((3, "all"),)),
        ({"offload": "optimizer", "kind": "cpu"}, ((2, "optimizer"),)),
    ],
)
def test_explicit_sharing_options_are_not_changed(over: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert modes(request(**over)) == expected


@pytest.mark.parametrize(
    ("over", "way"),
    [
        # Small enough for whole gradients on each card: reduced once a step.
        ({}, (1, False, 4)),
        # One micro-batch makes the step: stage 2 sends least.
        ({"rank_batch_size": 4}, (2, False, 4)),
        # Gradients are divided before activations are recomputed on one node, and after it over a network.
        ({"memory_limit_bytes": 16 * GIB}, (2, False, 1)),
        ({"memory_limit_bytes": 16 * GIB, "ranks_per_node": 1}, (1, True, 2)),
    ],
)
def test_the_stage_follows_what_is_sent_in_a_step(over: dict[str, Any], way: tuple[int, bool, int]) -> None:
    small = model_facts(
        parameters=1_235_814_400, hidden_size=2048, layers=16, vocabulary_size=32_000, attention_heads=32,
        key_value_heads=8, intermediate_size=8192,
    )  # fmt: skip
    sharing = choose_sharing(
        request(**({"model": small, "micro_batch_sizes": (4, 2, 1), "rank_batch_size": 16} | over))
    )
    assert sharing is not None
    assert (sharing.zero_stage, sharing.gradient_checkpointing, sharing.micro_batch_size) == way


def test_a_refusal_proposes_what_would_fit_with_its_numbers() -> None:
    alone = request(world_size=1, ranks_per_node=1, host_memory_limit_bytes=32 * GIB)
    assert choose_sharing(alone) is None
    assert what_would_fit(alone) == [
        "lora (zeroStage 1: 48.3 GiB a rank)",
        "resources.memory above 125Gi (zeroStage 2 with offload optimizer: 47.3 GiB a rank and 119.7 GiB of node memory"
        " for it)",
        "4 ranks (zeroStage 1, recomputed activations: 76.9 GiB a rank)",
    ]


def test_every_proposal_fits_when_it_is_followed() -> None:
    tight = request(
        world_size=2,
        ranks_per_node=2,
        memory_limit_bytes=24 * GIB,
        host_memory_limit_bytes=None,
        zero_stage=2,
    )
    assert choose_sharing(tight) is None
    (first, *_) = what_would_fit(replace(tight, zero_stage=None))
    assert first.startswith("lora (")
    assert choose_sharing(replace(tight, zero_stage=None, lora=LoraConfig())) is not None


def test_leaving_the_choice_to_the_estimate_is_proposed_first() -> None:
    fixed = request(world_size=8, zero_stage=0)
    assert what_would_fit(fixed) == [
        "pretraining.distribution left to the estimate (zeroStage 2: 62.3 GiB a rank)"
    ]


def test_offload_beyond_the_host_memory_is_not_chosen() -> None:
    crowded = request(memory_limit_bytes=24 * GIB, world_size=8, host_memory_limit_bytes=64 * GIB)
    assert chosen(memory_limit_bytes=24 * GIB, world_size=8) == (3, "optimizer", True)
    assert choose_sharing(crowded) is None


def test_the_choice_reaches_trainer_and_a_smaller_micro_batch_keeps_it() -> None:
    way = choose_sharing(request(world_size=1, ranks_per_node=1))
    assert way is not None
    batch = Batch(
        64, 4, 16, way.zero_stage, way.gradient_checkpointing, "bf16", way.memory, way.offload, way.host_bytes
    )
    assert distribution(batch) == DistributionConfig(zero_stage=2, offload="optimizer", precision="bf16")
    smaller = halved(batch, 1)
    assert smaller is not None
    assert (smaller.micro_batch_size, smaller.accumulation, smaller.offload) == (2, 32, "optimizer")


@pytest.mark.parametrize(
    ("length", "over", "way"),
    [
        (4096, {}, (2, "none", 1)),
        (65_536, {}, (2, "none", 1)),
        (131_072, {}, (2, "none", 2)),
        # Ranks share a sequence before anything is offloaded, as many as the heads can be divided by.
        (262_144, {}, (2, "none", 4)),
        (131_072, {"may_split_sequences": False}, (2, "optimizer", 1)),
        (4096, {"sequence_parallel": 8}, (1, "none", 8)),
    ],
)
def test_ranks_share_sequences_that_do_not_fit_whole(
    length: int, over: dict[str, Any], way: tuple[int, str, int]
) -> None:
    sharing = choose_sharing(
        request(
            **({"sequence_length_tokens": length, "may_split_sequences": True, "may_chunk_loss": True} | over)
        )
    )
    assert sharing is not None
    assert (sharing.zero_stage, sharing.offload, sharing.sequence_parallel) == way


def test_loss_in_chunks_takes_the_same_logits_for_any_length() -> None:
    def logits(length: int, **over: Any) -> float:
        return smallest_sharing(
            request(**({"sequence_length_tokens": length, "may_chunk_loss": True} | over))
        ).memory.logits

    # Of a chunk, of the head's gradient in fp32, and of the gradient of the last hidden states.
    chunk = chunk_tokens(128_256) * 128_256 * 12
    assert logits(65_536) == chunk + 4 * 128_256 * 4096 + 2 * 65_536 * 4096
    assert logits(65_536, lora=LoraConfig()) == chunk + 2 * 65_536 * 4096
    whole = 65_536 * 128_256 * 12
    assert logits(65_536, may_chunk_loss=False) == whole
    other = LLAMA_8B.model_copy(update={"architecture": "BloomForCausalLM"})
    assert logits(65_536, model=other) == whole


def test_two_changes_are_proposed_where_no_single_one_is_enough() -> None:
    alone = request(
        world_size=1, ranks_per_node=1, host_memory_limit_bytes=32 * GIB, sequence_length_tokens=262_144
    )
    (proposal,) = what_would_fit(alone)
    assert proposal.startswith("lora with sequences of 32768 tokens (zeroStage 2 with offload optimizer, ")


def test_penalty_that_keeps_weights_whole_is_named_among_what_would_fit() -> None:
    penalized = request(
        world_size=8,
        lora=LoraConfig(),
        memory_limit_bytes=16 * GIB,
        may_spread=False,
        regularization=PENALTY,
    )
    (proposal, *_) = what_would_fit(penalized)
    assert proposal.startswith("no pretraining.regularization (zeroStage 3, ")
