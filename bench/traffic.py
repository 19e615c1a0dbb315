"""Bytes that one rank sends for the gradients and weights of one optimizer step, by ZeRO stage and accumulation.

Two ranks over gloo on this machine train a small decoder through DeepSpeed with the settings that the trainer gives it.
What each collective sends is counted by the ring algorithm (all-reduce twice (n-1)/n of its bytes, reduce-scatter and
all-gather once), and stated as multiples of the gradients' bytes in fp32, in which they are summed. What the ring of
two ranks sends is (n-1)/n = 1/2 of what a large ring does, so the figures are divided by that.

The goals are those of the collectives: stage 1 an all-reduce of the gradients (2) and an all-gather of the weights (1/2
in bf16), stage 2 a reduction for each micro-batch instead (1), stage 3 that and the weights twice for each micro-batch.

    python -m bench.traffic [--accumulation 1,8] [--precision bf16,fp32]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
RANKS = 2


def count_bytes(counts: dict[str, float]) -> None:
    """Replaces torch's collectives by ones that also add up what a ring would send, in whole (n-1)/n."""
    import torch
    import torch.distributed as dist

    def size(value: Any) -> float:
        tensors = value if isinstance(value, (list, tuple)) else [value]
        return float(sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)))

    def counted(name: str, argument: int, times: float) -> None:
        original: Callable[..., Any] = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            value = args[argument] if len(args) > argument else next(iter(kwargs.values()))
            counts[name] = counts.get(name, 0.0) + times * size(value)
            return original(*args, **kwargs)

        setattr(dist, name, call)

    for name, argument, times in (
        ("all_reduce", 0, 2.0),
        ("reduce", 0, 1.0),
        ("broadcast", 0, 1.0),
        ("all_gather", 0, 1.0),
        ("all_gather_into_tensor", 0, 1.0),
        ("reduce_scatter", 1, 1.0),
        ("reduce_scatter_tensor", 1, 1.0),
        ("all_to_all_single", 0, 1.0),
    ):
        counted(name, argument, times)


@dataclass(frozen=True)
class Case:
    """One way to train."""

    stage: int
    accumulation: int
    precision: str

    @property
    def goal(self) -> float:
        """What the collectives of this stage send at least as DeepSpeed arranges them."""
        weights = 0.5 if self.precision == "bf16" else 1.0
        if self.stage < 2:
            return 2.0 + weights * self.stage
        if self.stage == 2:
            return self.accumulation + weights
        return self.accumulation * (1.0 + 2.0 * weights)


def rank_main(rank: int, folder: str, cases: list[Case]) -> None:
    """One rank: of each case two optimizer steps, of which the second is counted."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    counts: dict[str, float] = {}
    count_bytes(counts)
    found = [sent(case, counts) for case in cases]
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def sent(case: Case, counts: dict[str, float]) -> dict[str, float]:
    """Multiples of the gradients' bytes that one optimizer step sends, by collective."""
    import deepspeed
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dapt_contract.stages.common import DistributionConfig, OptimizerConfig
    from dapt_trainer.training.arguments import deepspeed_settings

    distribution = DistributionConfig.model_validate({"zero_stage": case.stage, "precision": case.precision})
    settings = deepspeed_settings(distribution, OptimizerConfig(learning_rate=1e-3), on_cpu=True) | {
        "train_batch_size": RANKS * case.accumulation,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": case.accumulation,
    }
    zero = settings["zero_optimization"]
    assert isinstance(zero, dict)
    settings["zero_optimization"] = {name: value for name, value in zero.items() if value != "auto"}
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    unit = sum(p.numel() for p in model.parameters()) * 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    ids = torch.randint(0, 2048, (1, 64))
    for _ in range(2):
        counts.clear()
        for _ in range(case.accumulation):
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
    return {name: value / unit for name, value in counts.items()}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.traffic")
    parser.add_argument("--accumulation", default="1,8")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--stages", default="1,2,3", help="stage 0 in fp32 alone")
    options = parser.parse_args()
    import torch.multiprocessing as mp

    cases = [
        Case(stage, accumulation, precision)
        for precision in options.precision.split(",")
        for accumulation in map(int, options.accumulation.split(","))
        for stage in map(int, options.stages.split(","))
    ]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (folder, cases), nprocs=RANKS)
        found = json.loads((Path(folder) / "result.json").read_text())
    all_good = True
    for case, parts in zip(cases, found, strict=True):
        name = f"traffic.{case.precision}_accumulation_{case.accumulation}_stage_{case.stage}"
        print(name, *(f"{part} {value:.2f}" for part, value in sorted(parts.items())), file=sys.stderr)
        total = sum(parts.values())
        is_good = total <= case.goal + 0.01  # the norm and padding
        all_good = all_good and is_good
        print(f"{name} {total:.2f} {case.goal:g} {'ok' if is_good else 'short'}", flush=True)
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
