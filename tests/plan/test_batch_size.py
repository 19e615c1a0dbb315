"""Default global batches: large where there is much data, small where a training would have few steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing.batch_size import (
    ENOUGH_STEPS,
    FEW_STEPS,
    default_batch_size,
    smallest_pretraining_batch,
)
from dapt_operator.plan.sizing.resolve import RankLayout, counted_steps
from dapt_operator.plan.sizing.tuning import TuningRequest, finetuning_request, preference_request
from dapt_operator.plan.stages.prepare import prepare_stage
from support.builders import merged, model_facts

SPEC: dict[str, Any] = {
    "model": {"source": "s3://models/base"},
    "corpus": {
        "domain": [{"source": "s3://c/d"}],
        "general": [{"source": "s3://c/g"}],
        "sequenceLength": 1000,
    },
    "output": {"destination": "s3://models/out"},
    "resources": {"nodes": 1, "gpusPerNode": 1},
}
PROFILE = AdaptationProfileSpec.model_validate(
    {"trainerImage": "x", "accelerator": {"memoryGiB": 80, "perNode": 8}, "storage": {"existingClaim": "w"}}
)


def spec(**over: Any) -> DomainAdaptationSpec:
    return DomainAdaptationSpec.model_validate(merged(SPEC, over))


def pretraining(domain_tokens: int, ranks: int = 1, **over: Any) -> tuple[int, int]:
    """Return the global batch and the steps of a pretraining without replay."""
    steps = counted_steps(
        spec(**over), ranks=ranks, domain_tokens=domain_tokens, replay=0.0, sequence_length_tokens=1000
    )
    return steps.global_batch_size, steps.total_steps


@pytest.mark.parametrize(
    ("sequences", "shared_by", "expected"),
    [
        (None, 1, 64),
        (1_000_000, 1, 64),
        (6_400, 1, 64),
        (6_399, 1, 32),
        (3_200, 1, 32),
        (1_000, 1, 8),
        (199, 1, 1),
        (1, 1, 1),
        (1_000, 8, 8),
        (1_000, 3, 6),
        (10, 16, 16),
        (None, 24, 48),
        (None, 128, 128),
    ],
)
def test_default_is_the_largest_power_of_two_with_enough_steps_that_the_ranks_can_share(
    sequences: float | None, shared_by: int, expected: int
) -> None:
    assert default_batch_size(shared_by, sequences) == expected


@given(st.integers(1, 10**7), st.integers(1, 200))
def test_default_can_always_be_shared_and_never_wastes_steps(sequences: int, shared_by: int) -> None:
    size = default_batch_size(shared_by, sequences)
    assert size % shared_by == 0
    assert size == shared_by or sequences / size >= ENOUGH_STEPS
    assert size <= max(64, shared_by)


@pytest.mark.parametrize(
    ("domain_tokens", "over", "expected"),
    [
        (100_000_000, {}, (64, 1562)),
        (1_000_000, {}, (8, 125)),
        (100_000, {}, (1, 100)),
        (1_000_000, {"pretraining": {"budget": {"epochs": 4}}}, (32, 125)),
        (1_000_000, {"pretraining": {"budget": {"tokens": 200_000}}}, (2, 100)),
        # what is explicit stays, and a number of steps was chosen by the user
        (1_000_000, {"pretraining": {"globalBatchSize": 64}}, (64, 16)),
        (1_000_000, {"pretraining": {"budget": {"steps": 6}}}, (64, 6)),
        (1_000_000, {"pretraining": {"microBatchSize": 3}}, (6, 167)),
    ],
)
def test_pretraining_on_little_text_gets_enough_steps(
    domain_tokens: int, over: dict[str, Any], expected: tuple[int, int]
) -> None:
    assert pretraining(domain_tokens, **over) == expected


def test_batch_does_not_depend_on_the_ranks_while_they_can_share_it() -> None:
    assert {pretraining(3_300_000, ranks)[0] for ranks in (1, 2, 4, 8, 16, 32)} == {32}


def test_prepare_refuses_only_a_corpus_below_the_smallest_batch() -> None:
    assert smallest_pretraining_batch(spec(), 8) == 8
    assert smallest_pretraining_batch(spec(pretraining={"microBatchSize": 2}), 8) == 16
    assert smallest_pretraining_batch(spec(pretraining={"globalBatchSize": 32}), 8) == 32
    assert smallest_pretraining_batch(spec(pretraining={"budget": {"steps": 5}}), 8) == 64
    config = prepare_stage(spec(), PROFILE).config
    assert config.global_batch_size == 1  # type: ignore[attr-defined]


def tuning(block: str, over: dict[str, Any] | None = None, **settings: Any) -> TuningRequest:
    data = {"data": [{"source": "s3://c/s"}]}
    blocks: dict[str, Any] = {"finetuning": data, "preference": data}
    wanted = spec(**merged(blocks, {block: settings} | (over or {})))
    if block == "finetuning":
        assert wanted.finetuning is not None
        return finetuning_request(wanted, PROFILE, wanted.finetuning)
    assert wanted.preference is not None
    return preference_request(wanted, PROFILE, wanted.preference)


@pytest.mark.parametrize(
    ("records", "batch", "minimum_rows", "steps"),
    [(60, 1, 50, 100), (1_000, 16, 800, 100), (5_000, 64, 3_200, 100), (100_000, 64, 3_200, 938)],
)
def test_fine_tuning_of_little_data_gets_enough_steps(
    records: int, batch: int, minimum_rows: int, steps: int
) -> None:
    request = tuning("finetuning")
    assert request.global_batch_size(records) == batch
    assert request.minimum_rows(records) == minimum_rows
    # 300 tokens an example, ten of them in a sequence
    assert request.total_steps(records, 300 * records, 1000) == steps


@pytest.mark.parametrize(("pairs", "batch", "steps"), [(40, 1, 40), (450, 4, 113), (64_000, 64, 1_000)])
def test_preference_tuning_of_little_data_gets_enough_steps(pairs: int, batch: int, steps: int) -> None:
    request = tuning("preference")
    assert request.global_batch_size(pairs) == batch
    assert request.total_steps(pairs, None, 1000) == steps


def test_a_requested_batch_of_tuning_stays_and_rows_are_packed_as_before() -> None:
    request = tuning("finetuning", globalBatchSize=32)
    assert (request.global_batch_size(60), request.minimum_rows(60)) == (32, None)
    # three examples in a sequence: twenty sequences, spread over a batch of 32
    assert request.total_steps(60, 60 * 300, 1000) == math.ceil(2 * 32 / 32) < FEW_STEPS


def test_default_of_tuning_is_at_most_the_batch_of_pretraining() -> None:
    request = tuning("finetuning", {"pretraining": {"globalBatchSize": 8}})
    assert [request.global_batch_size(records) for records in (100_000, 60)] == [8, 1]


def test_default_of_tuning_without_a_count_is_the_batch_of_pretraining() -> None:
    assert tuning("preference").global_batch_size(None) == 64
    assert tuning("finetuning", budget={"steps": 50}).global_batch_size(60) == 64
    assert tuning("finetuning").minimum_rows(None) is None


def test_ranks_share_the_default_of_tuning() -> None:
    over = {"resources": {"gpusPerNode": 8}}
    assert tuning("finetuning", over).layout == RankLayout(1, 8, 8)
    assert tuning("finetuning", over).global_batch_size(60) == 8


EIGHT_NODES: dict[str, Any] = {"resources": {"nodes": 8, "gpusPerNode": 8}}


@pytest.mark.parametrize(
    ("records", "over", "settings", "layout"),
    [
        # 64 sequences a step are one for each of 64 ranks.
        (100_000, {}, {}, RankLayout(8, 8, 8)),
        (None, {}, {}, RankLayout(8, 8, 8)),
        # 1,000 examples, two passes: a step of 16 is all that leaves 100 steps.
        (1_000, {}, {}, RankLayout(2, 8, 8)),
        (60, {}, {}, RankLayout(1, 8, 8)),
        # A requested batch is kept: the most nodes that can share it.
        (60, {}, {"globalBatchSize": 32}, RankLayout(4, 8, 8)),
        # Own resources count as they are, and GPUs alone are of one node.
        (60, {"stageResources": {"finetune": {"nodes": 3}}}, {}, RankLayout(3, 8, 8)),
        (100_000, {"stageResources": {"finetune": {"gpus": 4}}}, {}, RankLayout(1, 4, 4)),
        (60, {"stageResources": {"finetune": {"nodes": 2, "gpus": 4}}}, {}, RankLayout(2, 4, 4)),
    ],
)
def test_tuning_takes_as_many_of_pretrainings_nodes_as_its_data_fills_a_batch_of(
    records: int | None, over: dict[str, Any], settings: dict[str, Any], layout: RankLayout
) -> None:
    assert tuning("finetuning", EIGHT_NODES | over, **settings).for_records(records).layout == layout


def test_preference_tuning_has_the_resources_of_fine_tuning_unless_it_has_its_own() -> None:
    own = {"stageResources": {"finetune": {"nodes": 2, "gpus": 4}}}
    assert tuning("preference", EIGHT_NODES | own).layout == RankLayout(2, 4, 4)
    own["stageResources"]["align"] = {"gpus": 2}
    assert tuning("preference", EIGHT_NODES | own).layout == RankLayout(1, 2, 2)


def test_tuning_of_little_data_takes_more_nodes_where_its_model_needs_them() -> None:
    large = model_facts(
        parameters=8_030_261_248, hidden_size=4096, layers=32, vocabulary_size=128_256, attention_heads=32,
        key_value_heads=8, intermediate_size=14_336, tied_embeddings=False,
    )  # fmt: skip
    request = tuning("finetuning", EIGHT_NODES | {"finetuning": {"method": {"lora": None, "full": {}}}})
    wanted, cards = spec(**EIGHT_NODES), {"memoryGiB": 24, "perNode": 8}
    small = AdaptationProfileSpec.model_validate(
        {"trainerImage": "x", "accelerator": cards, "storage": {"existingClaim": "w"}}
    )
    fitted = [
        request.fit(wanted, small, model, records=60, sequence_length_tokens=2048)
        for model in (model_facts(), large)
    ]
    assert [(batch.nodes, batch.global_batch_size) for batch in fitted] == [(1, 8), (2, 16)]
