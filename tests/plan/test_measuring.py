"""How a measuring stage divides its model over GPUs, what it refuses, and what of that a run is known again by."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.stage_file import digest_of_work
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.plan.sizing.model_fit.measuring import (
    MeasuringPlan,
    MeasuringRequest,
    choose_measuring,
    measuring_plans,
)
from dapt_operator.plan.sizing.resolve import RefusedError
from dapt_operator.plan.stage_parts.stage_plan import StageInputs
from dapt_operator.plan.stages.baseline import baseline_stage
from support.builders import adaptation, model_facts, prepare_facts, profile

LLAMA_70B: dict[str, Any] = {
    "parameters": 70_553_706_496, "hidden_size": 8192, "layers": 80, "vocabulary_size": 128_256,
    "attention_heads": 64, "key_value_heads": 8, "intermediate_size": 28_672, "max_positions": 131_072,
    "tied_embeddings": False,
}  # fmt: skip
EIGHT_OF_80: dict[str, Any] = {"accelerator": {"kind": "gpu", "perNode": 8, "memoryGiB": 80}}
NODES: dict[str, Any] = {"resources": {"nodes": 8, "gpusPerNode": 8}}


def request(model: dict[str, Any], over: dict[str, Any], offered: dict[str, Any]) -> MeasuringRequest:
    spec = DomainAdaptation.model_validate(adaptation(**over)).spec
    return MeasuringRequest(
        spec,
        AdaptationProfile.model_validate(profile(**offered)).spec,
        model_facts(**model),
        4096,
        "baseline",
    )


def chosen(
    model: dict[str, Any], over: dict[str, Any] = NODES, offered: dict[str, Any] = EIGHT_OF_80
) -> MeasuringPlan:
    return choose_measuring(request(model, over, offered))


def way(plan: MeasuringPlan) -> tuple[int, int, int, str]:
    return (
        plan.layout.nodes,
        plan.layout.processes_per_node,
        plan.spread.ranks_per_model,
        plan.spread.method,
    )


def own(**resources: int) -> dict[str, Any]:
    return NODES | {"stageResources": {"baseline": resources}}


@pytest.mark.parametrize(
    ("model", "over", "memory_gib", "expected"),
    [
        ({}, NODES, 80, (1, 1, 1, "tensorParallel")),
        (LLAMA_70B, NODES, 80, (1, 2, 2, "tensorParallel")),
        (LLAMA_70B, NODES, 48, (1, 4, 4, "tensorParallel")),
        # Heads that two do not divide: each layer's weights are gathered instead.
        (LLAMA_70B | {"key_value_heads": 7}, NODES, 80, (1, 2, 2, "zero3")),
        # More than a node's eight hold: over two nodes.
        (LLAMA_70B, NODES, 18, (2, 8, 16, "zero3")),
        # GPUs that the spec gives are all used: two copies.
        (LLAMA_70B, own(gpus=8), 48, (1, 8, 4, "tensorParallel")),
        (LLAMA_70B, own(nodes=2), 48, (2, 8, 4, "tensorParallel")),
        (LLAMA_70B, own(gpusPerModel=8), 80, (1, 8, 8, "tensorParallel")),
        (LLAMA_70B, own(gpusPerModel=16, nodes=2), 80, (2, 8, 16, "zero3")),
        ({}, own(gpus=2, gpusPerModel=2), 80, (1, 2, 2, "zero3")),
    ],
)
def test_model_is_measured_on_the_fewest_gpus_that_hold_it(
    model: dict[str, Any], over: dict[str, Any], memory_gib: int, expected: tuple[int, int, int, str]
) -> None:
    plan = chosen(model, over, {"accelerator": EIGHT_OF_80["accelerator"] | {"memoryGiB": memory_gib}})
    assert way(plan) == expected
    assert plan.layout.world_size % plan.spread.ranks_per_model == 0
    assert plan.memory.total <= plan.limit_bytes == 0.92 * memory_gib * 2**30


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        (
            {"resources": {"nodes": 1, "gpusPerNode": 1}},
            "what would fit: resources.gpusPerNode 2 (70.4 GiB a GPU with the model over 2); a profile whose"
            " accelerator.memoryGiB is at least 149",
        ),
        (
            own(gpus=1),
            "what would fit: stageResources.baseline.gpus 2 (70.4 GiB a GPU with the model over 2); a profile whose"
            " accelerator.memoryGiB is at least 149",
        ),
        (
            NODES | {"resources": {"nodes": 1, "gpusPerNode": 8, "memory": "8Gi"}},
            "what would fit: resources.memory of at least 10Gi",
        ),
        (
            # More nodes than pretraining has are taken only where they are asked for.
            NODES
            | {"resources": {"nodes": 1, "gpusPerNode": 8}}
            | {"stageResources": {"baseline": {"gpusPerModel": 16}}},
            "spec.stageResources.baseline.gpusPerModel is 16, and copies of that many do not fill 1 node with 8 each:"
            " write a divisor of 8, or whole nodes that divide spec.stageResources.baseline.nodes",
        ),
        (
            own(gpusPerModel=3, nodes=1),
            "spec.stageResources.baseline.gpusPerModel is 3, and copies of that many do not fill 1 node with 8 each:"
            " write a divisor of 8, or whole nodes that divide spec.stageResources.baseline.nodes",
        ),
    ],
)
def test_model_that_cannot_be_measured_is_refused_with_what_would_fit(
    over: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        chosen(LLAMA_70B, over)
    assert refused.value.message.endswith(sentence)


def test_following_a_proposal_fits() -> None:
    assert way(chosen(LLAMA_70B, {"resources": {"nodes": 1, "gpusPerNode": 2}}))[1:3] == (2, 2)
    large = {"accelerator": EIGHT_OF_80["accelerator"] | {"memoryGiB": 149}}
    assert way(chosen(LLAMA_70B, own(gpus=1), large))[1:3] == (1, 1)


def test_stages_that_are_refused_alike_share_a_sentence() -> None:
    one = request(LLAMA_70B, {"resources": {"nodes": 1, "gpusPerNode": 1}}, EIGHT_OF_80)
    plans = measuring_plans(one.spec, one.profile, one.model, 4096)
    (problem,) = plans.problems
    assert problem.startswith(
        "baseline, evaluate and verify need 136.3 GiB a GPU by the estimate (weights 131.4 GiB"
    )
    assert plans.plans == {}


def test_number_of_ranks_is_no_part_of_the_work() -> None:
    facts = prepare_facts(model=model_facts(**LLAMA_70B))
    offered = AdaptationProfile.model_validate(profile(**EIGHT_OF_80)).spec

    def stage(over: dict[str, Any]) -> Any:
        return baseline_stage(
            StageInputs(DomainAdaptation.model_validate(adaptation(**over)).spec, offered, facts)
        )

    two, eight = stage(NODES), stage(own(gpusPerModel=8))
    assert (two.config.spread.ranks_per_model, eight.config.spread.ranks_per_model) == (2, 8)
    assert (two.resources.processes_per_node, eight.resources.accelerators_per_node) == (2, 8)
    assert digest_of_work(two.config) == digest_of_work(eight.config)
