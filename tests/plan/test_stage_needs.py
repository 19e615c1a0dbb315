"""What each stage takes: bytes that ranks send in a step, and space on the work volume."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.inputs.model_size import trainable_parameters
from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.plan.sizing.estimate import EstimateFacts, estimate
from dapt_operator.plan.sizing.model_fit.batch import Batch
from dapt_operator.plan.sizing.model_fit.memory import MemoryParts
from dapt_operator.plan.sizing.stage_needs import StageNeed, traffic_bytes
from dapt_operator.plan.sizing.tuning_estimate import TuningSize
from dapt_operator.plan.stages.prepare import prepare_stage
from support.builders import adaptation, model_facts, profile

NO_MEMORY = MemoryParts(0, 0, 0, 0, 0, 0, 0)


def sent(zero_stage: Any, accumulation: int, model: ModelFacts, **over: Any) -> float:
    """Multiples of the fp32 gradients that a rank of eight sends."""
    lora = over.pop("lora", None)
    batch = Batch(8 * accumulation, 1, accumulation, zero_stage, False, "bf16", NO_MEMORY, **over)
    return traffic_bytes(model, lora, batch, 8, 4096) / (4 * trainable_parameters(model, lora))


@pytest.mark.parametrize(
    ("zero_stage", "accumulation", "multiples"),
    [(1, 1, 2.5), (1, 8, 2.5), (2, 1, 1.5), (2, 8, 8.5), (3, 1, 2.0), (3, 8, 16.0)],
)
def test_bytes_sent_in_a_step_are_those_of_the_stage(
    zero_stage: int, accumulation: int, multiples: float
) -> None:
    assert sent(zero_stage, accumulation, model_facts()) == multiples


def test_adapters_alone_are_reduced_but_stage_3_gathers_the_whole_model() -> None:
    model, lora = model_facts(), LoraConfig(rank=8)
    share = trainable_parameters(model, lora) / model.parameters
    assert sent(1, 8, model, lora=lora) == 2.5
    assert sent(3, 1, model, lora=lora) == pytest.approx(1 + 2 * 0.5 * (1 + 1 / share))


def test_ranks_that_share_a_sequence_exchange_heads_in_every_layer() -> None:
    model = model_facts()
    exchanged = (sent(1, 1, model, sequence_parallel=2) - sent(1, 1, model)) * 4 * model.parameters
    # Forward and backward, 30 layers, 2,048 tokens of a rank, half of queries, keys, values and outputs in bf16.
    assert exchanged == pytest.approx(2 * 30 * 2048 * (2 * 576 + 2 * 192) * 2 / 2)


def test_one_rank_sends_nothing() -> None:
    batch = Batch(8, 1, 8, 1, False, "bf16", NO_MEMORY)
    assert traffic_bytes(model_facts(), None, batch, 1, 4096) == 0.0


def test_pods_of_prepare_are_those_of_the_manifest() -> None:
    spec = DomainAdaptation.model_validate(
        adaptation(stageResources={"prepare": {"nodes": 4, "cpu": "8"}})
    ).spec
    offered = AdaptationProfile.model_validate(profile()).spec
    resources = prepare_stage(spec, offered).resources
    assert (resources.nodes, resources.processes_per_node, resources.accelerators_per_node) == (4, 1, 0)
    facts = EstimateFacts(model=model_facts(), domain_tokens=1000, general_tokens=500)
    needs = {need.stage: need for need in estimate(spec, offered, facts).needs}
    assert needs["prepare"].layout.nodes == 4
    # The data is the same for any number, so another number is no other work.
    plain = DomainAdaptation.model_validate(adaptation()).spec
    assert prepare_stage(spec, offered).config == prepare_stage(plain, offered).config


def test_space_on_the_work_volume_is_counted_by_stage() -> None:
    over: dict[str, Any] = {"selection": {"averageLast": 3}, "preference": {"data": [{"source": "s3://c/p"}]}}
    facts = EstimateFacts(
        model=model_facts(),
        domain_tokens=1000,
        general_tokens=500,
        instructions=TuningSize(500, 5000),
        preferences=TuningSize(500, 5000),
    )
    spec = DomainAdaptation.model_validate(adaptation(**over)).spec
    needs = {
        need.stage: need
        for need in estimate(spec, AdaptationProfile.model_validate(profile()).spec, facts).needs
    }
    model_bytes = model_facts().weights_bytes
    adapter, tuned = (trainable_parameters(model_facts(), LoraConfig(rank=rank)) for rank in (64, 16))

    def disk(stage: str) -> float:
        found: StageNeed = needs[stage]
        return found.disk_bytes

    assert disk("prepare") == model_bytes + 4 * 1500
    assert disk("baseline") == disk("evaluate") == disk("verify") == 0
    # Four adapters in bf16, two of them with 12 bytes of optimizer state for each parameter.
    assert disk("pretrain") == (4 * 2 + 2 * 12) * adapter
    assert disk("blend") == 4 * model_bytes
    assert disk("finetune") == disk("align") == (2 + 12 + 2) * tuned + model_bytes
    assert needs["publish"].layout.accelerators_per_node == 0
