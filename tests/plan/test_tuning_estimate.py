"""Estimates of fine-tuning, preference tuning and measuring: steps, memory, hours, and warnings."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.plan.sizing.compute import cpu_rate
from dapt_operator.plan.sizing.estimate import Estimate, EstimateFacts, estimate
from dapt_operator.plan.sizing.tuning_estimate import TuningSize
from dapt_operator.plan.sizing.warnings import few_steps_warnings
from support.builders import adaptation, model_facts, profile

SMALL = model_facts(parameters=1_000_000_000, max_positions=4096)
GPU = {"accelerator": {"kind": "gpu", "perNode": 1, "memoryGiB": 80, "peakTflops": 989}}
CPU = {"accelerator": {"kind": "cpu", "perNode": 2, "memoryGiB": 8, "peakTflops": None}}
TUNING: dict[str, Any] = {
    "finetuning": {"data": [{"source": "file:///s.jsonl"}]},
    "preference": {"data": [{"source": "file:///p.jsonl"}]},
    "corpus": {"sequenceLength": 1024, "replayFraction": 0.05},
    "resources": {"nodes": 1, "gpusPerNode": 1},
    "pretraining": {
        "budget": {"steps": None, "epochs": 1},
        "globalBatchSize": None,
        "microBatchSize": None,
    },
}
FACTS: dict[str, Any] = {
    "model": SMALL,
    "domain_tokens": 100_000_000,
    "instructions": TuningSize(records=1_000, tokens=300_000),
    "preferences": TuningSize(records=500, tokens=400_000),
}


def estimated(over: dict[str, Any] | None = None, offered: dict[str, Any] = GPU, **facts: Any) -> Estimate:
    spec = DomainAdaptation.model_validate(adaptation(**(TUNING | (over or {})))).spec
    known = EstimateFacts(**(FACTS | facts))
    return estimate(spec, AdaptationProfile.model_validate(profile(**offered)).spec, known)


def test_both_tuning_stages_have_steps_rates_memory_and_formulas() -> None:
    found = estimated()
    finetuning, preference = found.tuning
    assert (finetuning.stage, finetuning.method, finetuning.learning_rate) == ("finetune", "lora", 1e-4)
    assert (finetuning.global_batch_size, finetuning.total_steps, finetuning.total_tokens) == (
        16,
        100,
        600_000,
    )
    assert (preference.stage, preference.learning_rate) == ("align", 5e-6)
    assert (preference.global_batch_size, preference.total_steps) == (4, 125)
    for stage in (finetuning, preference):
        assert stage.batch is not None
        assert stage.batch.memory.total > 0
    assert [stage.kind for stage in found.stages] == ["pretrain", "finetune", "align", "measure"]
    assert (
        "finetuning steps: 1,000 examples of 300 k tokens, packed into sequences of 1024 tokens, x 2 epochs / 16 a"
        " step = 100" in found.formulas
    )
    assert "preference steps: 500 pairs, not packed, x 1 epoch / 4 a step = 125" in found.formulas


@pytest.mark.parametrize(("epochs", "reference_share"), [(1, 1 / 3), (4, 1 / 12)])
def test_hours_of_preference_tuning_have_the_reference_model_reading_each_pair_once(
    epochs: int, reference_share: float
) -> None:
    preference = TUNING["preference"] | {"epochs": epochs}
    unchecked = {"pretraining": TUNING["pretraining"] | {"distribution": {"gradientCheckpointing": False}}}
    found = estimated(unchecked | {"preference": preference})
    (hours,) = (stage for stage in found.stages if stage.kind == "align")
    assert found.rate is not None
    trained = 6e9 * epochs * 400_000 / found.rate.training_flops_per_second / 3600
    assert hours.hours == pytest.approx(trained * (1 + reference_share))
    assert "+ 2 x 1 B parameters x 400 k tokens (the reference)" in hours.formula


def test_steps_without_the_tokens_of_examples_are_called_the_most_there_can_be() -> None:
    batch = {"finetuning": TUNING["finetuning"] | {"globalBatchSize": 32}}
    counted = estimated(batch, instructions=TuningSize(300, 30_000))
    assert counted.tuning[0].total_steps == 2
    assert counted.warnings[-1].startswith("finetuning has 2 optimizer steps, under 20")
    uncounted = estimated(batch, instructions=TuningSize(300))
    assert uncounted.tuning[0].total_steps == 19
    assert uncounted.warnings[-1].startswith("finetuning has at most 19 optimizer steps, under 20")
    assert (
        "finetuning steps: 300 examples, each counted as a sequence, since their tokens are not known, x 2 epochs / 32"
        " a step = 19" in uncounted.formulas
    )


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        (TuningSize(1_000, 300_000), 50 * 32 * 300_000 / 293),  # 293 sequences of 1,024 tokens
        (TuningSize(300, 3_000), 50 * 3_000),  # spread over one batch of sequences, so a step is a pass
        (TuningSize(), 50 * 32 * 1024),  # full sequences
    ],
    ids=["packed", "little", "unknown"],
)
def test_steps_that_are_given_have_their_tokens_and_hours(size: TuningSize, tokens: float) -> None:
    finetuning = TUNING["finetuning"] | {"budget": {"epochs": None, "steps": 50}, "globalBatchSize": 32}
    found = estimated({"finetuning": finetuning}, instructions=size)
    assert (found.tuning[0].total_steps, found.tuning[0].total_tokens) == (50, round(tokens))
    assert [stage.kind for stage in found.stages] == ["pretrain", "finetune", "align", "measure"]


def test_what_is_not_known_of_tuning_data_is_unknown() -> None:
    found = estimated(instructions=TuningSize(), preferences=TuningSize())
    assert [(stage.total_steps, stage.total_tokens) for stage in found.tuning] == [(None, None)] * 2
    assert [stage.kind for stage in found.stages] == ["pretrain", "measure"]


def test_tuning_that_does_not_fit_is_refused_before_anything_runs() -> None:
    over = {"finetuning": {"data": [{"source": "file:///s.jsonl"}], "method": {"lora": None, "full": {}}}}
    lora = {"pretraining": {"method": {"lora": {"rank": 8}}, "globalBatchSize": None, "microBatchSize": None}}
    small = {"accelerator": GPU["accelerator"] | {"memoryGiB": 10}}
    found = estimated(over | lora, small)
    assert [problem.split(" needs ")[0] for problem in found.problems] == ["finetuning"]


@pytest.mark.parametrize(
    ("facts", "blocks"),
    [
        ({}, []),
        ({"domain_tokens": 15_000}, ["pretraining"]),
        ({"instructions": TuningSize(5, 500)}, ["finetuning"]),
        ({"preferences": TuningSize(19, 5_000)}, ["preference"]),
        ({"preferences": TuningSize(20, 5_000)}, []),
        (
            {"domain_tokens": 5_000, "instructions": TuningSize(3, 90), "preferences": TuningSize(2, 90)},
            ["pretraining", "finetuning", "preference"],
        ),
    ],
)
def test_under_twenty_steps_of_any_training_are_warned_about(
    facts: dict[str, Any], blocks: list[str]
) -> None:
    warned = [text.split(" has ")[0] for text in estimated(**facts).warnings if "under 20" in text]
    assert warned == blocks


def test_warning_of_few_steps_is_word_for_word() -> None:
    assert few_steps_warnings({"pretraining": 1, "finetuning": None, "preference": 20}) == (
        "pretraining has 1 optimizer step, under 20: too few for the learning rate to rise and fall; use more data or"
        " passes, or a smaller pretraining.globalBatchSize",
    )


def test_sequences_of_tuning_beyond_the_model_are_warned_about() -> None:
    data = {"data": [{"source": "file:///s.jsonl"}], "sequenceLength": 8192}
    found = estimated({"finetuning": data})
    assert found.tuning[0].sequence_length_tokens == 4096
    assert (
        "spec.finetuning.sequenceLength is 8192, longer than the model's 4096 positions: conversations are cut at 4096"
        in found.warnings
    )


def test_model_that_no_measuring_stage_can_load_is_refused() -> None:
    # Training spreads the weights over its ranks; the baseline has one GPU by its own resources.
    large = model_facts(parameters=70_000_000_000, max_positions=4096)
    eight = {"accelerator": GPU["accelerator"] | {"perNode": 8}}
    one = {name: {"gpus": 1} for name in ("baseline", "evaluate", "verify")}
    found = estimated(
        {"resources": {"nodes": 4, "gpusPerNode": 8}, "stageResources": one}, eight, model=large
    )
    assert [problem for problem in found.problems if "verify" in problem] == [
        "verify needs 132.8 GiB a GPU by the estimate (weights 130.4 GiB, overhead 2.0 GiB, logits 0.2 GiB, generation"
        " 0.1 GiB, activations 0.1 GiB), and the profile gives 73.6 GiB (8% stay free): what would fit:"
        " stageResources.verify.gpus 2 (68.9 GiB a GPU with the model over 2); a profile whose accelerator.memoryGiB is"
        " at least 145"
    ]


def test_measuring_on_a_cpu_has_the_memory_of_all_processes() -> None:
    # 3.7 GiB of fp32 weights and 1 GiB for the process: more than a rank's 4 GiB, less than the pod's 8 GiB
    small = {"accelerator": CPU["accelerator"] | {"memoryGiB": 4}}
    found = estimated({"resources": {"nodes": 1, "gpusPerNode": 2}}, small)
    assert not [problem for problem in found.problems if "verify" in problem]


def test_time_without_a_gpu_follows_from_a_stated_rate() -> None:
    found = estimated(
        {"resources": {"nodes": 1, "gpusPerNode": 2}}, CPU, cpu_rate=cpu_rate(1), domain_tokens=950_000
    )
    assert found.gpu_hours == 0
    assert found.rate is not None
    assert found.rate.training_text == "1 core x 50 GFLOP/s, assumed"
    # 6 x 1e9 x 1e6 FLOP by two processes of 50 GFLOP/s
    assert found.clock_hours == pytest.approx(6e15 / (2 * 50e9) / 3600, rel=0.35)
    assert found.total_clock_hours is not None
    assert found.clock_hours is not None
    assert found.total_clock_hours > found.clock_hours


def test_a_stated_peak_of_a_cpu_profile_counts_more_than_the_assumed_rate() -> None:
    offered = {"accelerator": CPU["accelerator"] | {"peakTflops": 2.0}}
    found = estimated({"resources": {"nodes": 1, "gpusPerNode": 1}}, offered, cpu_rate=cpu_rate(1))
    assert found.rate is not None
    assert found.rate.training_text == "2 TFLOP/s x 30%, assumed"


def test_time_without_any_rate_is_unknown() -> None:
    found = estimated({"resources": {"nodes": 1, "gpusPerNode": 1}}, CPU)
    assert (found.rate, found.total_clock_hours) == (None, None)
