"""One GPU, a 1 B-parameter Llama shape, sequence 4,096, bf16: tokens/s and MFU of the pretrain stage, full and LoRA.

Prints `NAME VALUE BAR ok|short`. The stage is held against a loop by hand with the same attention and kernels (bar
0.95), against transformers' own Trainer as its users set it up (bar 1), its peak memory against the planner's estimate
(within 10 %), and its MFU against 55 % (an aim; 40 to 46 % is what others publish). Then each switch of the stage is
turned off once: compilation, the fused loss, the varlen kernel, fp32 accumulation. As far as time is left, the loop by
hand shows what Liger, torch.compile, keeping documents apart, and packing cost or bring. Each case has a process of its
own, so that none sees another's memory. MFU = tokens/s x FLOPs a token / peak, with attention and without recomputed
activations (`modeling/flops.py`). Weights are random and nothing is downloaded. At most 10 minutes.

    python -m bench gpu
    python -m bench.gpu [--steps 12] [--minutes 9.5] [--peak-tflops 989] [--cases full_stage,full_bare] [--dry-run]

`--dry-run` runs every case with a tiny model on the CPU in one process; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import gpu_cases
from bench.gpu_cases import CASES, LLAMA_1B, OPTIONAL, TINY, Shape
from bench.gpu_switches import SWITCHES
from dapt_trainer.pod.launch import set_allocator

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "B200": 2250.0}
"""Dense bf16, by a part of the device's name."""
RATIO_BAR = 0.95
PUBLIC_BAR = 1.0
MFU_AIM = 0.55
MEMORY_BAR = 0.1
ROWS = 256
LONGEST_CASE_SECONDS = 240
LEAST_CASE_SECONDS = 25
"""A process that imports torch, loads the model and compiles takes so long at least: with less left it is not begun."""


def figure(name: str, value: float, bar: float | None, *, at_most: bool = False) -> bool:
    """Print one; True when it is short of its bar. Without a bar it is only told."""
    short = bar is not None and (value > bar if at_most else value < bar)
    shown = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    print(f"{name} {shown} {'-' if bar is None else bar} {'short' if short else 'ok'}", flush=True)
    return short


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 when no bar is missed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=9.5, help="no case runs longer than until then")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    wanted = [name for name in options.cases.split(",") if name in CASES]
    if options.dry_run:
        return report(dry_results(wanted), TINY, None, methods_memory=None)
    device, memory_bytes = accelerator()
    if not device:
        print("bench.gpu needs a GPU; --dry-run shows on the CPU that it works", file=sys.stderr)
        return 2
    peak = options.peak_tflops or next((flops for part, flops in PEAK_TFLOPS.items() if part in device), None)
    if peak is None:
        print(f"the peak of {device} is not known: give --peak-tflops", file=sys.stderr)
        return 2
    print(f"# {device}, {memory_bytes / 2**30:.0f} GiB, peak {peak:g} TFLOP/s in bf16", file=sys.stderr)
    planned = {method: plan(LLAMA_1B, method, memory_bytes) for method in ("full", "lora")}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        gpu_cases.make_work(work, LLAMA_1B, ROWS)
        for name in wanted:
            left = end - time.monotonic()
            if left < LEAST_CASE_SECONDS:
                print(f"# {name} was not begun: {left:.0f} s are left", file=sys.stderr)
                continue
            batch = planned[CASES[name].method]
            chosen = run_options(LLAMA_1B, options.steps, batch)
            found = in_a_process(name, work, chosen, longest_seconds=min(left, LONGEST_CASE_SECONDS))
            if found is not None:
                results[name] = found
    estimates = {method: batch.memory.total - batch.memory.overhead for method, batch in planned.items()}
    return report(results, LLAMA_1B, peak, methods_memory=estimates)


def run_options(shape: Shape, steps: int, batch: Any) -> dict[str, Any]:
    """What a case's process must know."""
    return {
        "shape": asdict(shape), "steps": steps, "micro": batch.micro_batch_size, "accumulation": 1,
        "checkpointing": batch.gradient_checkpointing,
    }  # fmt: skip


def plan(shape: Shape, method: str, memory_bytes: int) -> Any:
    """What the planner would choose for one such GPU."""
    from dapt_contract.stages.common import LoraConfig
    from dapt_operator.plan.sizing.model_fit.batch import MICRO_BATCH_TOKENS
    from dapt_operator.plan.sizing.model_fit.parallelism import SharingRequest, choose_sharing

    most = MICRO_BATCH_TOKENS["gpu"] // shape.length
    way = choose_sharing(
        SharingRequest(
            model=facts(shape), lora=LoraConfig(rank=gpu_cases.LORA_RANK) if method == "lora" else None, kind="gpu",
            world_size=1, ranks_per_node=1, memory_limit_bytes=memory_bytes, host_memory_limit_bytes=None,
            precision="bf16",
            sequence_length_tokens=shape.length,
            micro_batch_sizes=tuple(size for size in range(most, 0, -1) if most % size == 0),
        )
    )  # fmt: skip
    assert way is not None
    print(f"# planned, {method}: micro-batch {way.micro_batch_size}, {way.text()}", file=sys.stderr)
    print(f"#   {way.memory.text()}", file=sys.stderr)
    return way


def facts(shape: Shape) -> Any:
    """As prepare reads them of such a model."""
    from dapt_contract.stages.prepare import ModelFacts

    keys = shape.hidden // shape.heads * shape.key_value_heads
    layer = 2 * shape.hidden * (shape.hidden + keys) + 3 * shape.hidden * shape.inner + 2 * shape.hidden
    return ModelFacts(
        architecture="LlamaForCausalLM", hidden_size=shape.hidden, layers=shape.layers,
        parameters=shape.layers * layer + shape.vocabulary * shape.hidden + shape.hidden,
        vocabulary_size=shape.vocabulary, attention_heads=shape.heads, key_value_heads=shape.key_value_heads,
        intermediate_size=shape.inner, max_positions=shape.length, tied_embeddings=True, has_chat_template=False,
        revision="random", digest="random", weights_bytes=1,
    )  # fmt: skip


def in_a_process(
    name: str, work: Path, options: dict[str, Any], *, longest_seconds: float
) -> dict[str, Any] | None:
    """One case; None when it failed, which is told and is no reason to give up the others."""
    out = work.parent / f"{name}.json"
    command = [
        sys.executable, "-m", "bench.gpu_cases", name, "--work", str(work), "--out", str(out),
        "--options", json.dumps(options),
    ]  # fmt: skip
    try:
        environment = dict(os.environ)
        set_allocator(environment)  # as in a pod
        done = subprocess.run(
            command, stdout=sys.stderr, timeout=longest_seconds, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        print(f"# {name} took longer than {longest_seconds:.0f} s", file=sys.stderr)
        return None
    if done.returncode != 0:
        print(f"# {name} ended with exit code {done.returncode}", file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(out.read_text())
    print(f"# {name}: {found['attention']}; {found['kernels']}", file=sys.stderr)
    return found


def dry_results(wanted: list[str]) -> dict[str, dict[str, Any]]:
    """Every case with a tiny model on the CPU, in this process."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DAPT_ACCELERATOR", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        gpu_cases.make_work(work, TINY, 16)
        options = {
            "shape": asdict(TINY), "steps": 3, "micro": 2, "accumulation": 1, "checkpointing": False,
        }  # fmt: skip
        return {name: gpu_cases.run(name, work, options) for name in wanted}


def report(
    results: dict[str, dict[str, Any]],
    shape: Shape,
    peak_tflops: float | None,
    *,
    methods_memory: dict[str, float] | None,
) -> int:
    """All figures of the cases that ran; bars hold on a GPU alone."""
    real = peak_tflops is not None
    short = False
    speed = {name: found["tokens_per_second"] for name, found in results.items()}
    for method in ("full", "lora"):
        stage, bare = results.get(f"{method}_stage"), results.get(f"{method}_bare")
        if stage is None:
            continue
        figure(f"gpu_{method}_tokens_per_second", stage["tokens_per_second"], None)
        figure(f"gpu_{method}_flops_per_token", stage["flops_per_token"], None)
        if peak_tflops is not None:
            mfu = stage["tokens_per_second"] * stage["flops_per_token"] / (peak_tflops * 1e12)
            aim = MFU_AIM if method == "full" else None
            short |= figure(f"gpu_{method}_mfu", mfu, aim)
        if bare is not None:
            ratio = speed[f"{method}_stage"] / speed[f"{method}_bare"]
            short |= figure(f"gpu_{method}_over_bare_loop", ratio, RATIO_BAR if real else None)
        if (public := results.get(f"{method}_public")) is not None:
            ratio = stage["tokens_per_second"] / public["tokens_per_second"]
            short |= figure(f"gpu_{method}_over_public_loop", ratio, PUBLIC_BAR if real else None)
        if methods_memory is not None:
            figure(f"gpu_{method}_peak_memory_gib", stage["peak_bytes"] / 2**30, None)
            error = abs(stage["peak_bytes"] / methods_memory[method] - 1)
            short |= figure(f"gpu_{method}_memory_off_estimate", error, MEMORY_BAR, at_most=True)
    brought = {
        **{switch: ("full_stage", f"full_no_{switch}") for switch in SWITCHES},
        "liger": ("full_liger", "full_plain"),
        "whole_compile": ("full_compile", "full_plain"),
        "documents_kept_apart": ("full_bare", "full_one_text"),
        "packing": ("full_bare", "full_unpacked"),
    }
    for name, (with_it, without) in brought.items():
        if with_it in speed and without in speed:
            figure(f"gpu_{name}_speedup", speed[with_it] / speed[without], None)
            if real:
                saved = 1 - results[with_it]["peak_bytes"] / results[without]["peak_bytes"]
                figure(f"gpu_{name}_memory_saved_fraction", saved, None)
    figure("gpu_sequence_length_tokens", shape.length, None)
    missing = [name for name in CASES if name not in results]
    if missing:
        print(f"# did not run: {', '.join(missing)}", file=sys.stderr)
    return int(short or (real and bool(set(missing) - set(OPTIONAL))))


def accelerator() -> tuple[str, int]:
    """Name and memory in bytes of the first GPU; an empty name without one. Asked in a process of its own, so that
    this one holds no memory of it."""
    program = (
        "import torch; n = torch.cuda.is_available();"
        "print(torch.cuda.get_device_name(0) if n else '');"
        "print(torch.cuda.get_device_properties(0).total_memory if n else 0)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    name, memory = answer.stdout.splitlines()[-2:]
    return name.strip(), int(memory)


if __name__ == "__main__":
    sys.exit(main())
