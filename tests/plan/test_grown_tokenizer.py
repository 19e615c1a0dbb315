"""A grown tokenizer in the estimate: rows of the embedding and the head, and what of them adapters train."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.inputs.model_size import trainable_parameters
from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import TokenizerFacts
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation, DomainAdaptationSpec
from dapt_operator.plan.sizing.estimate import Estimate, EstimateFacts, estimate
from dapt_operator.plan.sizing.grown_tokenizer import break_even_tokens, grown_model
from support.builders import adaptation, base_measure, model_facts, profile

SIZES = {"parameters": 1_000_000, "hidden_size": 100, "vocabulary_size": 5_000}
EXTENDED = {"model": {"tokenizer": {"extend": {"vocabularySize": 400}}}}


def spec_of(**over: Any) -> DomainAdaptationSpec:
    return DomainAdaptation.model_validate(adaptation(**over)).spec


def facts(added: int) -> TokenizerFacts:
    return TokenizerFacts(
        added_tokens=added,
        domain_tokens_per_word_before=2.0,
        domain_tokens_per_word_after=1.5,
        general_tokens_per_word_before=1.5,
        general_tokens_per_word_after=1.5,
    )


@pytest.mark.parametrize(("tied", "matrices"), [(True, 1), (False, 2)])
def test_each_new_token_has_a_row_of_each_matrix(tied: bool, matrices: int) -> None:
    base = model_facts(**SIZES, tied_embeddings=tied)
    grown = grown_model(base, spec_of(**EXTENDED))
    assert grown.parameters == 1_000_000 + matrices * 400 * 100
    assert grown.vocabulary_size == 5_400
    counted = grown_model(base, spec_of(**EXTENDED), facts(30))
    assert counted.parameters == 1_000_000 + matrices * 30 * 100
    assert grown_model(counted, spec_of(**EXTENDED)) == counted
    lora = LoraConfig(rank=8)
    rows = trainable_parameters(counted, lora.model_copy(update={"embeddings": True}))
    assert rows - trainable_parameters(counted, lora) == matrices * 30 * 100
    assert trainable_parameters(counted, lora) == trainable_parameters(base, lora)


def test_without_an_extension_the_model_is_the_base_model() -> None:
    base = model_facts(**SIZES)
    assert grown_model(base, spec_of()) is base


def test_the_estimate_counts_the_new_rows() -> None:
    base = model_facts(**SIZES, tied_embeddings=False)
    offered = AdaptationProfile.model_validate(profile()).spec

    def of(**over: object) -> Estimate:
        return estimate(spec_of(**over), offered, EstimateFacts(model=base, domain_tokens=1_000_000))

    plain, extended = of(), of(**EXTENDED)
    assert plain.trainable_parameters is not None
    assert extended.trainable_parameters == plain.trainable_parameters + 2 * 400 * 100
    assert plain.checkpoint_bytes is not None
    assert extended.checkpoint_bytes is not None
    assert extended.checkpoint_bytes > plain.checkpoint_bytes
    assert plain.memory is not None
    assert extended.memory is not None
    assert extended.memory.weights > plain.memory.weights
    assert extended.memory.logits > plain.memory.logits


@pytest.mark.parametrize(
    ("nats", "tokens"),
    [
        ((3.1, 2.9, 2.8, 2.7), 2_000),
        ((2.9, 3.1, 3.0, 2.8), 3_000),
        ((2.9, 2.8, 2.7, 3.2), None),
        ((3.4, 3.3, 3.2, 3.1), None),
    ],
)
def test_breaking_even_is_where_no_later_checkpoint_is_worse_than_the_base_model(
    nats: tuple[float, ...], tokens: int | None
) -> None:
    base = base_measure()  # 3.0 nats on the domain
    rows = tuple(
        CheckpointFacts(
            step=10 * number,
            try_number=1,
            domain_a_nats=value + 0.1,
            domain_b_nats=value - 0.1,
            general_a_nats=2.0,
            general_b_nats=2.0,
            weights_digest="0",
        )
        for number, value in enumerate(nats, start=1)
    )
    facts = PretrainFacts(ended_by="Completed", steps=40, tokens=4_000, checkpoints=rows)
    assert break_even_tokens(base, facts) == tokens
