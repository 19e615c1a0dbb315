"""The estimate: its numbers, its formulas, its warnings."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.inputs.model_size import trainable_parameters
from dapt_contract.stages.common import LoraConfig, ZeroStage
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.plan.sizing import warnings
from dapt_operator.plan.sizing.estimate import Estimate, EstimateFacts, estimate
from dapt_operator.plan.sizing.model_fit.memory import GIB, TrainingShape, training_memory
from dapt_operator.plan.sizing.warnings import WarningFacts
from support.builders import adaptation, base_measure, model_facts, profile

LLAMA_8B = model_facts(
    parameters=8_030_261_248, hidden_size=4096, layers=32, vocabulary_size=128_256, attention_heads=32,
    key_value_heads=8, intermediate_size=14_336, tied_embeddings=False,
)  # fmt: skip
H100 = {"accelerator": {"kind": "gpu", "perNode": 8, "memoryGiB": 80, "peakTflops": 989, "pricePerHour": 2.5}}
FULL: dict[str, Any] = {"lora": None, "full": {}}


def of(over: dict[str, Any], offered: dict[str, Any] | None = None, *known: Any, **more: Any) -> Estimate:
    spec = DomainAdaptation.model_validate(adaptation(**over)).spec
    facts = EstimateFacts(*known, **more)
    return estimate(spec, AdaptationProfile.model_validate(profile(**(offered or {}))).spec, facts)


def big(**over: Any) -> dict[str, Any]:
    pretraining = {
        "method": FULL, "budget": {"steps": None, "epochs": 1}, "globalBatchSize": 64, "microBatchSize": None,
    }  # fmt: skip
    return {
        "corpus": {"sequenceLength": 4096, "replayFraction": 0.05},
        "resources": {"nodes": 2, "gpusPerNode": 8},
        "pretraining": pretraining | over,
    }


def test_a_model_of_seven_billion_on_a_billion_tokens_is_tens_of_hours_not_thousands() -> None:
    seven = model_facts(parameters=7_000_000_000)
    found = of(big(distribution={"gradientCheckpointing": False}), H100, seven, 950_000_000)
    pretrain = found.stages[0]
    assert found.total_tokens == 1_000_000_000
    assert pretrain.hours == pytest.approx(25.4, abs=0.1)
    assert pretrain.formula == (
        "pretrain: 6 x 7 B parameters x 1 B tokens = 4.2e+19 FLOP; / (989 TFLOP/s x 46.4% of the peak, LLM Foundry,"
        " 7B at 2k on 8 H100) = 25.4 accelerator-hours"
    )


def test_tokens_and_steps_come_with_their_formulas() -> None:
    found = of(big(), H100, LLAMA_8B, 1_900_000_000)
    assert found.formulas[:2] == (
        "tokens: 1.9 B domain tokens x 1 epoch / (1 - 0.05 replay) = 2 B",
        "steps: 2 B tokens / (64 sequences x 4096 tokens) = 7629",
    )
    assert (found.total_steps, found.checkpoints, found.world_size) == (7629, 4, 16)
    assert found.cost == pytest.approx(found.gpu_hours * 2.5)  # type: ignore[operator]


def test_before_prepare_the_limits_of_the_sources_count() -> None:
    over = big()
    source = {"source": "file:///d.jsonl", "maxTokens": 1_900_000_000}
    over["corpus"] |= {"domain": [source]}
    assert of(over, H100, LLAMA_8B).total_tokens == 2_000_000_000


def test_what_cannot_be_known_is_unknown() -> None:
    found = of(big(), H100)
    assert (found.total_tokens, found.total_steps, found.memory_gib, found.gpu_hours) == (
        None,
        None,
        None,
        None,
    )
    assert found.formulas == (
        "tokens: unknown until prepared (no source has been counted and the budget is in epochs)",
    )
    assert found.sequence_length_tokens == 4096


def test_replay_is_assumed_until_it_is_measured() -> None:
    over = {"corpus": {"sequenceLength": 128}}
    assert of(over).replay_is_assumed
    found = of(over, None, None, None, base=base_measure())
    assert (found.replay_fraction, found.replay_is_assumed) == (0.13, False)


def test_memory_has_its_parts() -> None:
    memory = training_memory(
        TrainingShape(
            model=LLAMA_8B,
            lora=None,
            kind="gpu",
            world_size=16,
            zero_stage=2,
            precision="bf16",
            micro_batch_size=1,
            sequence_length_tokens=4096,
            gradient_checkpointing=True,
        )
    )
    count = LLAMA_8B.parameters
    assert memory.weights == 2 * count
    assert memory.gradients == 4 * count / 16
    assert memory.optimizer == 8 * count / 16
    assert memory.master_weights == 4 * count / 16
    assert memory.logits == 4096 * 128_256 * 12
    assert memory.overhead == 2 * GIB
    assert memory.total == sum(
        (memory.weights, memory.gradients, memory.optimizer, memory.master_weights, memory.activations,
         memory.logits, memory.overhead)
    )  # fmt: skip


def test_zero_stages_divide_gradients_and_optimizer_state() -> None:
    def parts(stage: ZeroStage) -> tuple[float, float]:
        memory = training_memory(
            TrainingShape(
                model=LLAMA_8B,
                lora=None,
                kind="gpu",
                world_size=4,
                zero_stage=stage,
                precision="bf16",
                micro_batch_size=1,
                sequence_length_tokens=128,
                gradient_checkpointing=False,
            )
        )
        return memory.gradients / LLAMA_8B.parameters, memory.optimizer / LLAMA_8B.parameters

    assert [parts(stage) for stage in (0, 1, 2)] == [(2, 8), (4, 2), (1, 2)]


def test_adapters_are_counted_over_all_linear_layers() -> None:
    # per layer: q and o 4096+4096 each, k and v 4096+1024 each, gate, up and down 4096+14336 each
    assert trainable_parameters(LLAMA_8B, LoraConfig(rank=64)) == 64 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18_432)


def test_what_does_not_fit_is_a_problem_that_names_the_parts() -> None:
    found = of(big(microBatchSize=1) | {"resources": {"gpusPerNode": 1, "nodes": 1}}, H100, LLAMA_8B, 10**9)
    (problem,) = found.problems
    assert problem.startswith("pretraining needs ")
    assert "optimizer 59.8 GiB, gradients 29.9 GiB, master weights 29.9 GiB" in problem
    assert found.batch is None


def test_all_problems_come_at_once() -> None:
    over = big(globalBatchSize=60)
    over["corpus"] |= {"sequenceLength": 10_000}
    found = of(over, H100, LLAMA_8B, 10**9)
    assert found.problems == (
        "spec.corpus.sequenceLength is 10000, longer than the model's 8192 positions: write at most 8192",
        "spec.pretraining.globalBatchSize is 60, which cannot be divided by 16 (2 nodes x 8 processes):"
        " write 48 or 64",
    )


@pytest.mark.parametrize(
    ("tokens", "method", "warning"),
    [
        (
            60_000,
            {"lora": {}},
            "the domain corpus has 60 k tokens, under 100 M: consider retrieval or fine-tuning instead",
        ),
        (
            60_000_000,
            FULL,
            "the domain corpus has 60 M tokens, under 100 M: consider retrieval or fine-tuning instead, and train with"
            " lora instead of full",
        ),
        (
            500_000_000,
            FULL,
            "the domain corpus has 500 M tokens, under 1 B: full training forgets more than lora on so little; watch"
            " the general perplexity",
        ),
        (12_000_000_000, FULL, "the domain corpus has 12 B tokens, over 10 B: watch for repeated text"),
    ],
)
def test_the_size_of_the_corpus_is_judged(tokens: int, method: dict[str, Any], warning: str) -> None:
    assert of({"pretraining": {"method": method}}, None, None, tokens).warnings == (warning,)


def test_lora_on_much_text_learns_less() -> None:
    assert of({"pretraining": {"method": {"lora": {}}}}, None, None, 2_000_000_000).warnings == (
        "the domain corpus has 2 B tokens, over 1 B: full training learns more from so much than lora (Biderman et al."
        " 2024); lora forgets less",
    )


@pytest.mark.parametrize(
    ("replay", "shift", "wanted"),
    [
        (0.05, 0.8, 0.25),
        (0.14, 0.8, 0.25),
        (0.16, 0.8, None),
        (0.06, 0.1, None),
        (0.02, -0.5, 0.05),
        (0.25, 3.0, None),
    ],
)
def test_replay_far_below_what_the_shift_needs_is_warned_about(
    replay: float, shift: float, wanted: float | None
) -> None:
    asked = DomainAdaptation.model_validate(adaptation(corpus={"replayFraction": replay})).spec
    offered = AdaptationProfile.model_validate(profile()).spec
    found = warnings.warnings(asked, offered, WarningFacts(replay_fraction=replay, shift_nats=shift))
    sentence = (
        f"replayFraction is {replay:g}, and the base model predicts the domain {shift:.2f} nats a token worse than"
        f" general text: {wanted} is what such a shift asks for; raise it, or leave it out"
    )
    assert [text for text in found if text.startswith("replayFraction")] == ([sentence] if wanted else [])


@pytest.mark.parametrize(
    ("shift", "limit", "shares"),
    [
        (0.56, 0.15, None),
        (0.8, 0.15, None),
        (1.06, 0.15, None),
        (0.49, 0.15, None),
        (0.56, 0.02, None),
        (0.56, 0.5, None),
        (0.56, 0.12, (0.25, 0.29)),
        (1.06, 0.12, (0.25, 0.3)),
    ],
)
def test_default_replay_that_relies_on_interpolation_in_the_records_is_warned_about(
    shift: float, limit: float, shares: tuple[float, float] | None
) -> None:
    asked = DomainAdaptation.model_validate(adaptation(gates={"maxGeneralPerplexityIncrease": limit})).spec
    offered = AdaptationProfile.model_validate(profile()).spec
    found = warnings.warnings(asked, offered, WarningFacts(shift_nats=shift))
    sentences = [
        f"the base model predicts the domain {shift:.2f} nats a token worse than general text, so replay is"
        f" {default:g}: in the recorded runs with such a shift the limit of {limit:+.0%} was kept from about {enough:g}"
        " on, and below it by interpolation with the base model alone; set corpus.replayFraction to rely on none"
        for default, enough in (() if shares is None else (shares,))
    ]
    assert [text for text in found if text.startswith("the base model predicts")] == sentences


def general_tasks(number: int, **evaluation: Any) -> dict[str, Any]:
    return {
        "evaluation": {"general": {"tasks": [{"name": f"t{place}"} for place in range(number)]}} | evaluation
    }


def test_too_few_items_of_a_general_task_are_warned_about_with_the_number_that_is_enough() -> None:
    assert [warnings.items_to_notice(3.0, number) for number in (1, 8)] == [262, 472]
    assert warnings.items_to_notice(6.0, 1) == 66
    lora: dict[str, Any] = {"pretraining": {"method": {"lora": {}}}}

    def found(over: dict[str, Any], **items: int) -> tuple[str, ...]:
        return of(lora | over, None, None, 500_000_000, items=items).warnings

    assert found(general_tasks(1)) == ()
    assert found(general_tasks(1), t0=262) == ()
    assert found(general_tasks(1), t0=261) == (
        "too few items of t0 (261 items): with 1 general task a loss of 6 points, twice gates.maxGeneralScoreDrop, is"
        " noticed in four of five cases from 262 items a task on; raise evaluation.limit, or use larger tasks",
    )
    assert found(general_tasks(2, limit=200), t1=100, other=5) == (
        "too few items of t0 (at most 200 items), t1 (100 items): with 2 general tasks a loss of 6 points, twice"
        " gates.maxGeneralScoreDrop, is noticed in four of five cases from 332 items a task on; raise evaluation.limit,"
        " or use larger tasks",
    )
    assert found(general_tasks(1) | {"gates": {"maxGeneralScoreDrop": 0}}, t0=5) == ()


def test_text_that_is_only_measured_leaves_the_model_to_itself() -> None:
    (warning,) = of({"corpus": {"generalUse": "measure", "replayFraction": None}}, None, None, None).warnings
    assert warning == (
        "no general text is trained on and no regularization is asked for, so nothing holds what the base model knows:"
        " add pretraining.regularization, or write generalUse: train, which holds it better"
    )


def test_estimate_of_a_corpus_that_fits_its_method_has_no_warnings() -> None:
    assert of({"pretraining": {"method": {"lora": {}}}}, None, None, 500_000_000).warnings == ()


def test_hundreds_of_passes_over_the_same_text_are_counted_in_whole_numbers() -> None:
    over = {"pretraining": {"budget": {"steps": None, "epochs": 675}}}
    messages = of(over, None, None, 500_000_000, general_tokens=10_000_000_000).warnings
    assert any("reads the 500 M domain tokens 675 times;" in message for message in messages)


def test_many_passes_over_the_same_text_are_warned_about() -> None:
    over = {"pretraining": {"budget": {"steps": None, "epochs": 6}}}
    found = of(over, None, None, 500_000_000, general_tokens=10_000_000)
    assert found.warnings == (
        "training reads the 500 M domain tokens 6.0 times; beyond 4 times repeated text is worth little: use more text"
        " or a smaller budget",
        "training reads the 10 M general tokens 15.8 times; beyond 4 times repeated text is worth little: use more text"
        " or a smaller budget",
    )


def test_a_model_tuned_on_instructions_is_warned_about() -> None:
    (warning,) = of({}, None, model_facts(has_chat_template=True)).warnings
    assert warning == (
        "the base model has a chat template, so it was tuned on instructions: continued pre-training costs it much of"
        " its chat ability (MT-Bench 7.9 to about 1 in FinDAP); prefer the base model of the same family"
    )


def test_many_nodes_on_a_volume_for_one_are_warned_about() -> None:
    template = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Ti"}}}
    offered = {"storage": {"existingClaim": None, "claimTemplate": template}}
    assert of({"resources": {"nodes": 2}}, offered).warnings == (
        "2 nodes need a work volume that many nodes can mount: give the profile's claimTemplate the access mode"
        " ReadWriteMany",
    )


def test_estimate_expectation_depends_on_the_corpus_size() -> None:
    assert of({}, None, None, 60_000).expectation == ""
    assert of({}, None, None, 2_000_000_000).expectation == (
        "with 2 B domain tokens, 15 to 25 points on domain benchmarks are what published adaptations of such size"
        " report"
    )


def test_a_profile_of_kind_cpu_has_no_accelerator_hours() -> None:
    found = of({}, {"accelerator": {"kind": "cpu", "peakTflops": 1}}, model_facts(), 10**9)
    assert found.gpu_hours == 0.0
    assert found.clock_hours is not None


def test_known_items_shorten_the_time_to_measure_and_unknown_ones_are_assumed() -> None:
    def hours(**items: int) -> float:
        return of({}, None, model_facts(), 10_000_000, 10_000_000, items=items).stages[-1].hours

    assert hours(codes=60, general=60) < hours(codes=60) < hours() == hours(codes=1000, general=1000)
