"""Automatic fields and dependent defaults."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dapt_contract.measure import Measure
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.api.schema.crd import structural
from dapt_operator.api.v1alpha1.profile import AdaptationProfile, AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptation, DomainAdaptationSpec
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.sizing.model_fit.batch import halved
from dapt_operator.plan.sizing.resolve import (
    RefusedError,
    budget_steps,
    learning_rate,
    pretraining_lora,
    replay_fraction,
)
from dapt_operator.plan.sizing.tuning import finetuning_request, preference_request
from dapt_operator.plan.stage_parts.attempts import measured_attempt
from dapt_operator.plan.stage_parts.common import distribution
from dapt_operator.plan.stage_parts.stage_plan import BASE_REFERENCE, StageInputs
from dapt_operator.plan.stages.finetune import finetune_batch, finetune_stage
from dapt_operator.plan.stages.prepare import prepare_stage
from dapt_operator.plan.stages.pretrain import PretrainingPlan, resolve_pretraining
from support.builders import adaptation, base_measure, model_facts, prepare_facts, profile, side


def first_attempt(
    wanted: DomainAdaptationSpec,
    profile_: AdaptationProfileSpec,
    prepared: PrepareFacts,
    base: Measure,
    *,
    halvings: int = 0,
) -> PretrainingPlan | None:
    """The numbers of the first attempt."""
    facts = Facts(prepare=prepared, baseline=BaselineFacts(measure=base))
    first = measured_attempt(wanted, facts, base, 1)
    numbers = resolve_pretraining(StageInputs(wanted, profile_, prepared), first.replay_fraction, first)
    batch = halved(numbers.batch, halvings)
    return numbers.with_batch(batch) if batch is not None else None


def spec(**over: Any) -> DomainAdaptationSpec:
    return DomainAdaptation.model_validate(adaptation(**over)).spec


def offered(**over: Any) -> AdaptationProfileSpec:
    return AdaptationProfile.model_validate(profile(**over)).spec


TUNING = {"data": [{"source": "s3://corpora/tuning.jsonl"}]}


def tuned(**method: Any) -> tuple[tuple[str, float, LoraConfig | None], ...]:
    """Block, rate and adapters of each training, with the same method in all of them; without one: the default's."""
    block: dict[str, Any] = {"method": method} if method else {}
    whole = spec(pretraining=block, finetuning=TUNING | block, preference=TUNING | block)
    assert whole.finetuning is not None
    assert whole.preference is not None
    requests = (
        finetuning_request(whole, offered(), whole.finetuning),
        preference_request(whole, offered(), whole.preference),
    )
    pretraining = whole.pretraining
    rate = learning_rate(pretraining.method, pretraining.optimizer.learning_rate)
    return (
        ("pretraining", rate, pretraining_lora(whole)),
        *((request.block, request.learning_rate, request.lora) for request in requests),
    )


def documented(block: str, field: str) -> str:
    """The meaning of a field as the reference has it, which is the CRD's."""
    schema = structural(DomainAdaptationSpec)
    for name in (block, *field.split(".")):
        schema = schema["properties"][name]
    return " ".join([f"Default {schema['default']}." if "default" in schema else "", schema["description"]])


@pytest.mark.parametrize("method", [{"full": {}, "lora": None}, {"lora": {}}], ids=["full", "lora"])
def test_rates_and_ranks_that_are_left_out_are_those_of_the_reference(method: dict[str, Any]) -> None:
    for block, rate, adapters in tuned(**method):
        found = re.search(
            r"Absent: (\S+) for full training, (\S+) for LoRA", documented(block, "optimizer.learningRate")
        )
        assert found is not None
        assert rate == float(found[1 if "full" in method else 2])
        if adapters is not None:
            ranks = re.findall(r"[Dd]efault (\d+)", documented(block, "method.lora.rank"))
            assert ranks == [str(adapters.rank)] * 2
            assert f"({adapters.alpha:g} at rank {adapters.rank})" in documented(block, "method.lora.alpha")


def test_tuning_without_a_method_has_the_adapters_of_an_empty_one() -> None:
    assert [adapters for _, _, adapters in tuned()[1:]] == [adapters for _, _, adapters in tuned(lora={})[1:]]


@pytest.mark.parametrize(
    ("shift", "share"),
    [(-0.5, 0.05), (0.0, 0.05), (0.2, 0.13), (0.25, 0.15), (0.5, 0.25), (0.56, 0.25), (2.0, 0.25)],
)
def test_replay_follows_the_measured_shift(shift: float, share: float) -> None:
    base = base_measure().model_copy(update={"domain": side(2.8 + shift), "general": side(2.8)})
    assert replay_fraction(spec(), base) == share


def test_replay_fraction_follows_the_spec_and_is_zero_for_measuring() -> None:
    assert replay_fraction(spec(corpus={"replayFraction": 0.3}), None) == 0.3
    assert replay_fraction(spec(corpus={"generalUse": "measure"}), base_measure()) == 0.0
    assert replay_fraction(spec(), None) is None


def test_epochs_become_total_tokens_and_steps() -> None:
    wanted = spec(pretraining={"budget": {"steps": None, "epochs": 2}})
    steps = budget_steps(wanted, ranks=2, domain_tokens=1_000_000, replay=0.2, sequence_length_tokens=128)
    assert steps is not None
    assert steps.total_tokens == 2_500_000
    assert steps.total_steps == 2441
    assert steps.checkpoint_steps == (610, 1220, 1831, 2441)


def test_fewer_steps_than_checkpoints_give_one_a_step() -> None:
    wanted = spec(pretraining={"budget": {"steps": 3}, "checkpoints": {"count": 10}})
    steps = budget_steps(wanted, ranks=2, domain_tokens=None, replay=0.1, sequence_length_tokens=128)
    assert steps is not None
    assert steps.checkpoint_steps == (1, 2, 3)


def test_checkpoints_rise_and_end_at_the_last_step() -> None:
    for total in range(1, 200):
        wanted = spec(pretraining={"budget": {"steps": total}, "checkpoints": {"count": 50}})
        found = budget_steps(wanted, ranks=2, domain_tokens=None, replay=0.1, sequence_length_tokens=128)
        assert found is not None
        assert len(found.checkpoint_steps) == min(total, 50)
        assert sorted(set(found.checkpoint_steps)) == list(found.checkpoint_steps)
        assert found.checkpoint_steps[-1] == total


def test_tokens_of_an_unknown_corpus_are_unknown() -> None:
    wanted = spec(pretraining={"budget": {"steps": None, "epochs": 1}})
    assert budget_steps(wanted, ranks=2, domain_tokens=None, replay=0.1, sequence_length_tokens=128) is None


@pytest.mark.parametrize(
    ("batch", "micro", "message"),
    [
        (
            7,
            None,
            "spec.pretraining.globalBatchSize is 7, which cannot be divided by 2 (1 node x 2 processes):"
            " write 6 or 8",
        ),
        (
            12,
            4,
            "spec.pretraining.globalBatchSize is 12, which cannot be divided by 8 (1 node x 2 processes"
            " x micro-batch 4): write 8 or 16",
        ),
        (
            2,
            4,
            "spec.pretraining.globalBatchSize is 2, which cannot be divided by 8 (1 node x 2 processes"
            " x micro-batch 4): write 8",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_with_the_nearest(
    batch: int, micro: int | None, message: str
) -> None:
    wanted = spec(pretraining={"globalBatchSize": batch, "microBatchSize": micro})
    with pytest.raises(RefusedError) as caught:
        first_attempt(wanted, offered(), prepare_facts(), base_measure())
    assert (caught.value.reason, caught.value.message) == ("InvalidSpec", message)


def test_too_little_memory_is_refused_with_its_parts() -> None:
    big = model_facts(
        parameters=8_030_000_000, hidden_size=4096, layers=32, vocabulary_size=128_256, attention_heads=32,
        key_value_heads=8, intermediate_size=14_336,
    )  # fmt: skip
    wanted = spec(pretraining={"method": {"lora": None, "full": {}}, "microBatchSize": 1})
    with pytest.raises(RefusedError) as caught:
        first_attempt(wanted, offered(), prepare_facts(model=big), base_measure())
    assert caught.value.reason == "NotEnoughMemory"
    assert re.fullmatch(
        r"pretraining needs \d+\.\d GiB a rank by the estimate \(optimizer 29\.9 GiB, .*\) and the profile's"
        r" accelerator\.memoryGiB is 24: .+",
        caught.value.message,
    )


def test_defaults_of_rates_and_sharding() -> None:
    numbers = first_attempt(spec(), offered(), prepare_facts(), base_measure())
    assert numbers is not None
    assert (numbers.learning_rate, numbers.batch.zero_stage, numbers.batch.precision) == (1.0e-4, 2, "bf16")
    full = spec(pretraining={"method": {"lora": None, "full": {}}}, resources={"gpusPerNode": 1})
    numbers = first_attempt(full, offered(), prepare_facts(), base_measure())
    assert numbers is not None
    assert (numbers.learning_rate, numbers.batch.zero_stage) == (2.0e-5, 1)


def test_the_micro_batch_is_the_largest_that_fits() -> None:
    wanted = spec(
        pretraining={"microBatchSize": None, "globalBatchSize": 512}, corpus={"sequenceLength": 2048}
    )
    prepared = prepare_facts(sequence_length_tokens=2048)
    sizes = {}
    for memory in (8, 24, 80):
        numbers = first_attempt(wanted, offered(accelerator={"memoryGiB": memory}), prepared, base_measure())
        assert numbers is not None
        assert numbers.batch.memory.total <= memory * 2**30
        sizes[memory] = numbers.batch.micro_batch_size
    assert sizes == {8: 2, 24: 8, 80: 16}


def test_activations_are_recomputed_only_when_nothing_else_fits() -> None:
    wanted = spec(pretraining={"microBatchSize": 8, "globalBatchSize": 16}, corpus={"sequenceLength": 2048})
    prepared = prepare_facts(sequence_length_tokens=2048)
    roomy = first_attempt(wanted, offered(), prepared, base_measure())
    assert roomy is not None
    assert not roomy.batch.gradient_checkpointing
    tight = first_attempt(wanted, offered(accelerator={"memoryGiB": 14}), prepared, base_measure())
    assert tight is not None
    assert tight.batch.gradient_checkpointing


def test_halving_keeps_the_global_batch() -> None:
    once = first_attempt(spec(), offered(), prepare_facts(), base_measure(), halvings=1)
    assert once is not None
    assert (once.batch.micro_batch_size, once.batch.accumulation, once.batch.global_batch_size) == (2, 2, 8)
    assert first_attempt(spec(), offered(), prepare_facts(), base_measure(), halvings=3) is None


def test_a_profile_of_kind_cpu_takes_processes_and_no_accelerator() -> None:
    offer = offered(accelerator={"kind": "cpu", "memoryGiB": 4, "peakTflops": None})
    numbers = first_attempt(spec(), offer, prepare_facts(), base_measure())
    assert numbers is not None
    assert (numbers.layout.processes_per_node, numbers.layout.accelerators_per_node) == (2, 0)
    assert numbers.batch.precision == "fp32"


def test_fine_tuning_takes_pretrainings_nodes_and_a_batch_that_its_ranks_can_share() -> None:
    wanted = spec(
        resources={"nodes": 4, "gpusPerNode": 2}, pretraining={"globalBatchSize": 24, "microBatchSize": 3}
    )
    assert wanted.finetuning is not None
    inputs = StageInputs(wanted, offered(), prepare_facts())
    batch = finetune_batch(inputs, wanted.finetuning)
    stage = finetune_stage(inputs, wanted.finetuning, batch, "a1-s40", BASE_REFERENCE)
    assert (stage.resources.nodes, stage.resources.processes_per_node) == (4, 2)
    assert stage.config.global_batch_size == 24  # type: ignore[attr-defined]
    assert stage.config.optimizer.learning_rate == 1.0e-4  # type: ignore[attr-defined]


def test_prepare_gets_the_readers_secrets_alone() -> None:
    wanted = spec(
        credentials=[{"secretName": "dapt-hub", "use": "read"}, {"secretName": "dapt-s3", "use": "write"}]
    )
    assert prepare_stage(wanted, offered()).secret_names == ("dapt-hub",)


def test_ranks_of_a_sequence_reach_the_trainer_or_are_refused() -> None:
    shared = spec(
        resources={"gpusPerNode": 2},
        pretraining={"distribution": {"sequenceParallel": 2}, "globalBatchSize": 4, "microBatchSize": 2},
    )
    prepared = prepare_facts(model=model_facts(key_value_heads=2))
    numbers = first_attempt(shared, offered(), prepared, base_measure())
    assert numbers is not None
    assert distribution(numbers.batch).sequence_parallel == 2
    # Four sequences a step, two at a time of both ranks together.
    assert (numbers.batch.micro_batch_size, numbers.batch.accumulation) == (2, 2)
    with pytest.raises(RefusedError) as refused:
        first_attempt(shared, offered(), prepare_facts(), base_measure())
    assert refused.value.message == (
        "spec.pretraining.distribution.sequenceParallel is 2, which does not divide the model's 3 key-value heads:"
        " write a divisor of all of them, or leave it out"
    )
