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


def test_gpu_bench_dry_run_lists_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import gpu

    assert gpu.main(["--dry-run"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "gpu_full_tokens_per_second",
        "gpu_full_flops_per_token",
        "gpu_full_over_bare_loop",
        "gpu_lora_tokens_per_second",
        "gpu_lora_flops_per_token",
        "gpu_lora_over_bare_loop",
        "gpu_liger_speedup",
        "gpu_compile_speedup",
        "gpu_documents_kept_apart_speedup",
        "gpu_packing_speedup",
        "gpu_sequence_length_tokens",
    ]
    assert all(line.endswith(" - ok") for line in lines)
    assert "did not run" not in said.err


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
        "gpu_full_mfu 0.4853 0.5 short",
        "gpu_full_over_bare_loop 0.9677 0.95 ok",
        "gpu_full_peak_memory_gib 64 - ok",
        "gpu_full_memory_off_estimate 0.08571 0.1 ok",
        "gpu_liger_speedup 1.24 - ok",
        "gpu_liger_memory_saved_fraction 0.25 - ok",
        "gpu_sequence_length_tokens 4096 - ok",
    ]


def test_the_planner_fits_the_shape_on_cards_of_two_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import gpu

    large, small = gpu.plan(gpu.LLAMA_1B, "full", 139 * 2**30), gpu.plan(gpu.LLAMA_1B, "full", 40 * 2**30)
    assert gpu.facts(gpu.LLAMA_1B).parameters == 1_235_814_400
    assert (large.zero_stage, large.micro_batch_size, large.gradient_checkpointing) == (1, 8, False)
    assert (small.micro_batch_size, small.gradient_checkpointing) == (1, False)
    assert gpu.plan(gpu.LLAMA_1B, "lora", 139 * 2**30).micro_batch_size == 8
