"""Plan adaptations of public models on GPUs of 80 GB: `python -m bench.sizes` prints, stage by stage, what each takes.

No GPU is needed: it is the planner's own arithmetic, with the models' published shapes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dapt_contract.stages.prepare import ModelFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.cli.display.stage_table import stage_table
from dapt_operator.number_format import duration
from dapt_operator.plan.sizing.estimate import Estimate, EstimateFacts, estimate
from dapt_operator.plan.sizing.stage_needs import StageNeed
from dapt_operator.plan.sizing.tuning_estimate import TuningSize

RESULT: Final = Path(__file__).parent / "results" / "sizes.txt"
DOMAIN_TOKENS: Final = 1_000_000_000
GENERAL_TOKENS: Final = 100_000_000
INSTRUCTIONS: Final = TuningSize(records=50_000, tokens=25_000_000)
PREFERENCES: Final = TuningSize(records=10_000, tokens=10_000_000)

# name: parameters, hidden, layers, heads, key-value heads, feed-forward, vocabulary, width of a head, tied
SHAPES: Final[dict[str, tuple[int, int, int, int, int, int, int, int, bool]]] = {
    "1B (Llama 3.2)": (1_235_814_400, 2048, 16, 32, 8, 8192, 128_256, 64, True),
    "8B (Llama 3.1)": (8_030_261_248, 4096, 32, 32, 8, 14_336, 128_256, 128, False),
    "14B (Qwen 2.5)": (14_770_033_664, 5120, 48, 40, 8, 13_824, 152_064, 128, False),
    "32B (Qwen 2.5)": (32_763_876_352, 5120, 64, 40, 8, 27_648, 152_064, 128, False),
    "70B (Llama 3.1)": (70_553_706_496, 8192, 80, 64, 8, 28_672, 128_256, 128, False),
}
METHODS: Final = ("full", "lora")
HARDWARE: Final = {"1 GPU": (1, 1, "225Gi"), "8 GPUs": (1, 8, "1800Gi"), "64 GPUs": (8, 8, "1800Gi")}
"""Nodes, GPUs of each, and memory of a pod."""
LEAST_PLANNED: Final = 100
"""Adaptations of the table that are not refused: all but some on one GPU."""
CONTEXTS: Final = (4096, 32_768, 65_536, 131_072)

HEAD: Final = """\
Adaptations of public models on GPUs of 80 GB, planned by arithmetic alone: python -m bench sizes

Each has 1 B tokens of domain text and one epoch, ten checkpoints, blends, tasks, fine-tuning on 50 k examples and
preference tuning on 10 k pairs of up to 4,096 tokens, by the same method. Memory is in GiB of the 73.6 that a plan may
fill of 80. A pod has 1,800 GiB of memory with 8 GPUs, 225 with one. What is sent in a step is what one rank sends to
others. Hours are 6 x parameters x tokens (2 where a model is measured) at 989 TFLOP/s and the share of it that others
publish; attention between tokens, which grows with the context, is not in them."""


def model_facts(name: str) -> ModelFacts:
    """Return the published shape of a model; its context is extended to the longest of the table."""
    parameters, hidden, layers, heads, key_value_heads, mlp, vocabulary, head_size, tied = SHAPES[name]
    return ModelFacts(
        architecture="LlamaForCausalLM" if "Llama" in name else "Qwen2ForCausalLM",
        parameters=parameters,
        hidden_size=hidden,
        layers=layers,
        vocabulary_size=vocabulary,
        attention_heads=heads,
        key_value_heads=key_value_heads,
        intermediate_size=mlp,
        max_positions=CONTEXTS[-1],
        tied_embeddings=tied,
        has_chat_template=False,
        revision="",
        digest="",
        weights_bytes=2 * parameters,
        head_size=head_size,
    )


def planned(name: str, method: str, hardware: str, context: int) -> Estimate:
    """Return the estimate of one adaptation."""
    nodes, gpus, memory = HARDWARE[hardware]
    block: dict[str, Any] = {"method": {method: {}}}
    data = {"source": "s3://tuning/data.jsonl"}
    spec = DomainAdaptationSpec.model_validate(
        {
            "profile": "bench",
            "model": {"source": "hf://org/model"},
            "corpus": {
                "domain": [{"source": "s3://text/domain"}],
                "general": [{"source": "s3://text/general"}],
                "sequenceLength": context,
            },
            "pretraining": block | {"budget": {"epochs": 1}},
            "evaluation": {"general": {"tasks": [{"name": "mmlu"}]}},
            "finetuning": block | {"data": [data], "sequenceLength": 4096},
            "preference": block | {"data": [data]},
            "output": {"destination": "s3://out/model"},
            "resources": {"nodes": nodes, "gpusPerNode": gpus, "memory": memory},
        }
    )
    profile = AdaptationProfileSpec.model_validate(
        {
            "trainerImage": "registry.example/dapt-trainer:1.0.0",
            "accelerator": {"kind": "gpu", "perNode": gpus, "memoryGiB": 80, "peakTflops": 989},
            "storage": {"existingClaim": "work"},
        }
    )
    known = EstimateFacts(
        model=model_facts(name),
        domain_tokens=DOMAIN_TOKENS,
        general_tokens=GENERAL_TOKENS,
        instructions=INSTRUCTIONS,
        preferences=PREFERENCES,
    )
    return estimate(spec, profile, known)


def lines() -> Iterator[str]:
    """Yield the lines of the whole table."""
    yield from HEAD.splitlines()
    for name in SHAPES:
        for method in METHODS:
            for hardware in HARDWARE:
                for context in CONTEXTS:
                    yield from ("", f"{name}, {method}, {hardware}, context {context:,}")
                    yield from _rows(planned(name, method, hardware, context))


def _rows(estimated: Estimate) -> Iterator[str]:
    yield from (f"  REFUSED {problem}" for problem in estimated.problems)
    # What is refused needs no table: nothing of it runs.
    if estimated.problems:
        return
    yield from stage_table(grouped(estimated.needs), has_gpus=True)
    hours = ", ".join(f"{stage.kind} {stage.hours:,.0f}" for stage in estimated.stages)
    clock = duration(3600 * (estimated.clock_hours or 0.0))
    yield f"  GPU-hours: {hours}; pretraining takes {clock}, {estimated.total_steps:,} steps"


def grouped(needs: Sequence[StageNeed]) -> list[StageNeed]:
    """Return the needs with those that differ by their stage alone in one, at the place of the first."""
    stages: dict[StageNeed, list[str]] = {}
    for need in needs:
        stages.setdefault(replace(need, stage=""), []).append(need.stage)
    return [replace(need, stage=", ".join(names)) for need, names in stages.items()]


def main() -> None:
    """Write the table, and print how many adaptations it has and how many of them are planned."""
    text = [*lines()]
    RESULT.write_text("\n".join(text) + "\n")
    adaptations = len(SHAPES) * len(METHODS) * len(HARDWARE) * len(CONTEXTS)
    planned_count = sum(line.startswith("  GPU-hours") for line in text)
    verdict = "ok" if planned_count >= LEAST_PLANNED else "short"
    print(f"sizes.planned {planned_count} {LEAST_PLANNED} {verdict}")
    print(f"{RESULT.name}: the other {adaptations - planned_count} adaptations are refused", file=sys.stderr)


if __name__ == "__main__":
    main()
