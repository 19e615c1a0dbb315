"""The bench for a GPU runs on the CPU with a tiny model, every case of it, so that it is ready where a GPU is lent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.toy_training import FILTERS

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]


@pytest.fixture(autouse=True)
def bench_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.setenv("DAPT_ACCELERATOR", "cpu")
    yield
    for name in [name for name in sys.modules if name == "bench" or name.startswith("bench.")]:
        del sys.modules[name]


LOOPS = {
    "gpu_full_tokens_per_second",
    "gpu_full_flops_per_token",
    "gpu_full_over_bare_loop",
    "gpu_full_over_public_loop",
    "gpu_lora_tokens_per_second",
    "gpu_lora_flops_per_token",
    "gpu_lora_over_bare_loop",
    "gpu_lora_over_public_loop",
    "gpu_liger_speedup",
    "gpu_whole_compile_speedup",
    "gpu_documents_kept_apart_speedup",
    "gpu_packing_speedup",
    "gpu_sequence_length_tokens",
}
SWITCHES = {
    "gpu_full_tokens_per_second",
    "gpu_full_flops_per_token",
    "gpu_compile_speedup",
    "gpu_fused_loss_speedup",
    "gpu_varlen_speedup",
    "gpu_fp32_accumulation_speedup",
    "gpu_sequence_length_tokens",
}


@pytest.mark.parametrize("part", ["loops", "switches"])
def test_gpu_bench_dry_run_lists_every_case(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import gpu

    switched = [name for name, case in gpu.CASES.items() if case.off]
    cases = (
        ["full_stage", *switched]
        if part == "switches"
        else [name for name in gpu.CASES if name not in switched]
    )
    assert gpu.main(["--dry-run", "--cases", ",".join(cases)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == (SWITCHES if part == "switches" else LOOPS)
    assert all(line.endswith(" - ok") for line in lines)


def test_figures_are_held_against_their_bars(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import gpu

    def found(speed: float, gib: float) -> dict[str, float]:
        return {"tokens_per_second": speed, "flops_per_token": 8e9, "peak_bytes": gib * 2**30}

    results = {
        "full_stage": found(60_000, 64), "full_bare": found(62_000, 60), "full_plain": found(50_000, 80),
        "full_liger": found(62_000, 60),
    }  # fmt: skip
    assert gpu.report(results, gpu.LLAMA_1B, 989.0, methods_memory={"full": 70 * 2**30}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "gpu_full_tokens_per_second 60000 - ok",
        "gpu_full_flops_per_token 8000000000 - ok",
        "gpu_full_mfu 0.4853 0.55 short",
        "gpu_full_over_bare_loop 0.9677 0.95 ok",
        "gpu_full_peak_memory_gib 64 - ok",
        "gpu_full_memory_off_estimate 0.08571 0.1 ok",
        "gpu_liger_speedup 1.24 - ok",
        "gpu_liger_memory_saved_fraction 0.25 - ok",
        "gpu_sequence_length_tokens 4096 - ok",
    ]


def test_switches_are_off_within_their_block_alone() -> None:
    import torch
    from bench.gpu_switches import turned_off
    from transformers import LlamaConfig, LlamaForCausalLM

    from dapt_contract.stages.common import DistributionConfig, OptimizerConfig
    from dapt_trainer.training import arguments, setup

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=8
        )
    )
    gpu = torch.device("cuda")

    def attention() -> str:
        return setup.choose_attention(model, gpu, document_boundaries=True, precision="bf16").implementation

    def accumulates_in() -> object:
        made = arguments.deepspeed_settings(
            DistributionConfig(zero_stage=1), OptimizerConfig(learning_rate=1.0), on_cpu=False
        )
        return made.get("data_types")

    chosen = attention()
    assert chosen != "sdpa"
    for switch in ("compile", "varlen"):
        with turned_off(switch):
            assert attention() == "sdpa"
    with turned_off("fp32_accumulation"):
        assert accumulates_in() is None
    liger = setup.choose_kernels
    with turned_off("fused_loss"):
        assert setup.choose_kernels is not liger
    assert (attention(), accumulates_in()) == (chosen, {"grad_accum_dtype": "fp32"})


def test_cases_end_with_the_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A case is given the time that is left, and one that could not end is not begun."""
    from bench import gpu, gpu_cases

    monkeypatch.setattr(gpu, "accelerator", lambda: ("NVIDIA H200", 139 * 2**30))
    monkeypatch.setattr(gpu_cases, "make_work", lambda *_: None)
    seconds = iter([0.0, 100.0, 590.0])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(seconds))
    begun: list[tuple[str, float]] = []

    def run(name: str, *_: object, longest_seconds: float) -> None:
        begun.append((name, longest_seconds))

    monkeypatch.setattr(gpu, "in_a_process", run)
    assert gpu.main(["--minutes", "10", "--cases", "full_stage,full_bare"]) == 1
    assert begun == [("full_stage", 240)]
    assert "# full_bare was not begun: 10 s are left" in capsys.readouterr().err


def test_the_planner_fits_the_shape_on_cards_of_two_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import gpu

    large, small = gpu.plan(gpu.LLAMA_1B, "full", 139 * 2**30), gpu.plan(gpu.LLAMA_1B, "full", 40 * 2**30)
    assert gpu.facts(gpu.LLAMA_1B).parameters == 1_235_814_400
    assert (large.zero_stage, large.micro_batch_size, large.gradient_checkpointing) == (1, 8, False)
    assert (small.micro_batch_size, small.gradient_checkpointing) == (1, False)
    assert gpu.plan(gpu.LLAMA_1B, "lora", 139 * 2**30).micro_batch_size == 8
