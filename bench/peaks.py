"""Peak memory of training stages on several CPU ranks against the estimate of the planner.

Each case runs a stage for two steps of two micro-batches in ranks of its own, and takes the kernel's mark of the
largest resident set (see `support.memory_ranks`, which says why). Two figures a case: what the stage adds to its
process, divided by the estimate without its overhead, which must be within a tenth of 1; and the whole process divided
by the whole estimate, which must not be over 1. What DeepSpeed reduces gradients in is a part of the overhead that the
stage adds, so it is counted as far as the model fills it.

A case runs alone when it is named, in about the memory that `--list` shows and prints with it:

    python -m bench.peaks [--list] [CASE ...]
    python -m bench peaks pretrain_200M_full_zero_2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.random_models import SIZES, Size, give_shape

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

TOLERANCE = 0.1
MIB = 2**20
ROWS = 4
"""Of 32 tokens, in one forward pass: memory of states is what several ranks divide, and what is compared here."""
LONGEST_SECONDS = 3600.0
VOCABULARY = 8192
EXAMPLES = 256


@dataclass(frozen=True)
class Case:
    """One training."""

    size: str
    stage: str
    method: str
    zero: int
    precision: str = "fp32"
    ranks: int = 2

    @property
    def name(self) -> str:
        """Name of its figures."""
        return f"peaks.{self.stage}_{self.size}_{self.method}_zero_{self.zero}_{self.precision}_{self.ranks}_ranks"

    @property
    def short_name(self) -> str:
        """The name without what is usual: fp32 and two ranks."""
        return self.name.removeprefix("peaks.").removesuffix("_2_ranks").removesuffix("_fp32")


CASES = (
    *(Case("50M", "pretrain", method, zero) for zero in (1, 2, 3) for method in ("full", "lora")),
    *(Case("50M", "pretrain", "full", zero, precision="bf16") for zero in (1, 2, 3)),
    *(Case("50M", "pretrain", "full", zero, ranks=4) for zero in (1, 3)),
    Case("50M", "finetune", "full", 1),
    Case("50M", "finetune", "lora", 3),
    Case("50M", "align", "lora", 1),
    Case("50M", "align", "full", 2),
    Case("200M", "pretrain", "full", 2),
    Case("500M", "pretrain", "lora", 1),
)


def make_volume(work: Path, size: Size | None) -> Any:
    """A work volume with a toy model or one of a size; returns what the planner knows of it."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    from dapt_trainer.data.base_model.facts import read_model_facts
    from support.toy_training import make_work_volume
    from support.tuning_texts import write_instructions, write_pairs

    make_work_volume(work, sequences=256)
    write_instructions(work, [("why?" * 3, "so " * 12)] * EXAMPLES)
    write_pairs(work, [("why?" * 3, "so " * 12, "no " * 12)] * EXAMPLES)
    if size is not None:
        config = AutoConfig.from_pretrained(work / "model")
        give_shape(config, size)
        config.vocab_size = VOCABULARY
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(work / "model")
    return read_model_facts(work / "model", "random", has_chat_template=False)


def config_of(case: Case) -> Any:
    """Two steps with two micro-batches on each rank."""
    from dapt_contract.stages.align import AlignConfig
    from dapt_contract.stages.common import (
        DistributionConfig,
        LoraConfig,
        ModelReference,
        OptimizerConfig,
        ScheduleConfig,
    )
    from dapt_contract.stages.finetune import FinetuneConfig
    from support.toy_training import SEQUENCE_LENGTH, pretrain_config

    shared: dict[str, Any] = {
        "lora": LoraConfig(rank=16, alpha=32) if case.method == "lora" else None,
        "global_batch_size": 2 * ROWS * case.ranks,
        "micro_batch_size": ROWS,
        "distribution": DistributionConfig.model_validate(
            {"zero_stage": case.zero, "precision": case.precision}
        ),
    }
    if case.stage == "pretrain":
        return pretrain_config(checkpoint_steps=(2,), total_steps=2, **shared)
    shared |= {
        "model": ModelReference(weights="model"),
        "optimizer": OptimizerConfig(learning_rate=1e-4),
        "schedule": ScheduleConfig(),
    }
    if case.stage == "finetune":
        return FinetuneConfig(sequence_length_tokens=SEQUENCE_LENGTH, total_steps=2, **shared)
    # Prompt and answer of a pair do not fit into the length of the packed rows.
    length = 2 * SEQUENCE_LENGTH
    return AlignConfig(
        sequence_length_tokens=length, beta=0.1, epochs=2 * shared["global_batch_size"] / EXAMPLES, **shared
    )


def estimate(case: Case, facts: Any, config: Any) -> Any:
    """The parts of the planner's estimate."""
    from dapt_operator.plan.sizing.model_fit.memory import TrainingShape, training_memory

    return training_memory(
        TrainingShape(
            model=facts,
            lora=config.lora,
            kind="cpu",
            world_size=case.ranks,
            zero_stage=config.distribution.zero_stage,
            precision=config.distribution.precision,
            # A pair is two sequences, and its loss needs all logits.
            micro_batch_size=2 * ROWS if case.stage == "align" else ROWS,
            sequence_length_tokens=config.sequence_length_tokens,
            gradient_checkpointing=False,
            chunked_loss=case.stage != "align",
        )
    )


def reduction_bytes(case: Case, trained: int, activation_bytes: float) -> float:
    """Bytes of what DeepSpeed lays gradients side by side in to reduce them.

    Stage 1 reduces them where they lie, in bf16 all at once in a copy. Stage 2 has a bucket. Stage 3 copies the bucket
    once more, padded for all ranks, and in bf16 in fp32 as well. Activations are freed by the time of a copy.
    """
    from dapt_trainer.training.arguments import BUCKET_ELEMENTS

    elements = min(BUCKET_ELEMENTS, trained)
    is_bf16 = case.precision == "bf16"
    if case.zero == 1:
        return max(0.0, 4.0 * trained - activation_bytes) if is_bf16 else 0.0
    bucket = 4.0 * elements
    if case.zero == 2:
        return bucket
    return bucket + max(0.0, bucket - activation_bytes) + (2.0 * elements if is_bf16 else 0.0)


def measure(case: Case, folder: Path) -> tuple[float, float]:
    """Run a case; return the largest growth of a rank by what is estimated of it, and the same of the whole process.

    Raises:
        RuntimeError: a rank failed.
    """
    from dapt_contract.inputs.model_size import trainable_parameters
    from support import rank_processes
    from support.memory_ranks import measure_rank

    rank_processes.LONGEST_SECONDS = LONGEST_SECONDS
    config = config_of(case)
    toy, large = folder / "toy", folder / "large"
    make_volume(toy, None)
    facts = make_volume(large, SIZES[case.size])
    codes = rank_processes.run_ranks(measure_rank, case.stage, toy, large, config, ranks=case.ranks)
    if any(codes):
        raise RuntimeError(f"{case.name}: the ranks ended with {codes}")
    memory = estimate(case, facts, config)
    trained = trainable_parameters(facts, config.lora)
    reduction = reduction_bytes(case, trained, memory.activations + memory.logits)
    estimated = memory.total - memory.overhead + reduction
    found = [json.loads((large / f"memory-{rank}.json").read_text()) for rank in range(case.ranks)]
    parts = {name: value for name, value in asdict(memory).items() if value and name != "overhead"}
    listed = ", ".join(
        f"{name} {value / MIB:.0f}" for name, value in (parts | {"reduction": reduction}).items()
    )
    print(f"# {facts.parameters / 1e6:.0f} M, estimate {estimated / MIB:.0f} MiB: {listed}", file=sys.stderr)
    for rank, values in enumerate(found):
        growths = ", ".join(f"{growth / MIB:.0f}" for growth in values["growths_bytes"])
        before = values["before_bytes"] / MIB
        print(
            f"# rank {rank}: {before:.0f} MiB before, grown in each step by {growths}",
            file=sys.stderr,
            flush=True,
        )
    growth = max(max(values["growths_bytes"]) for values in found)
    before = max(values["before_bytes"] for values in found)
    return growth / estimated, (before + growth) / memory.total


def facts_of(size: Size) -> Any:
    """What the planner knows of a model of a size, without making it."""
    from dapt_contract.stages.prepare import ModelFacts

    width = size.hidden // size.heads
    layer = (
        (2 * size.heads + size.heads // 2 * 2) * width * size.hidden
        + 3 * size.hidden * size.inner
        + 2 * size.hidden
    )
    parameters = size.layers * layer + VOCABULARY * size.hidden + size.hidden
    return ModelFacts(
        architecture="LlamaForCausalLM",
        parameters=parameters,
        hidden_size=size.hidden,
        layers=size.layers,
        vocabulary_size=VOCABULARY,
        attention_heads=size.heads,
        key_value_heads=size.heads // 2,
        intermediate_size=size.inner,
        max_positions=128,
        tied_embeddings=True,
        has_chat_template=False,
        revision="random",
        digest="random",
        weights_bytes=4 * parameters,
    )


def needed_gib(case: Case) -> float:
    """Memory of all ranks of a case by the estimate, with the state that they write at the end."""
    from dapt_contract.inputs.model_size import trainable_parameters

    facts, config = facts_of(SIZES[case.size]), config_of(case)
    memory = estimate(case, facts, config)
    # The last step is followed by a checkpoint: a copy of what is trained and of its masters and moments.
    trained = trainable_parameters(facts, config.lora)
    return (case.ranks * memory.total + 16 * trained) / 2**30


def main() -> int:
    """Measure and print; 0 when all are within the bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CASE", help="cases to run; all when none is named")
    parser.add_argument("--list", action="store_true", help="print the cases and the memory that each needs")
    options = parser.parse_args()
    cases = {case.short_name: case for case in CASES}
    if unknown := sorted(set(options.names) - set(cases)):
        parser.error(f"unknown case {', '.join(unknown)}; there are {', '.join(cases)}")
    if options.list:
        for name, case in cases.items():
            print(f"{name} {needed_gib(case):.1f} GiB")
        return 0
    is_short = False
    for case in (cases[name] for name in options.names or cases):
        with tempfile.TemporaryDirectory() as folder:
            growth, whole = measure(case, Path(folder))
        for name, ratio, is_good in (
            (case.name, growth, abs(growth - 1.0) <= TOLERANCE),
            (f"{case.name}_whole", whole, whole <= 1.0),
        ):
            is_short |= not is_good
            print(f"{name} {ratio:.3f} 1 {'ok' if is_good else 'short'}", flush=True)
    return int(is_short)


if __name__ == "__main__":
    sys.exit(main())
