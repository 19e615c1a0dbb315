"""The table of public models on GPUs of 80 GB: kept as the planner makes it, and what it must say of some of them."""

from __future__ import annotations

import pytest
from bench.sizes import RESULT, lines, planned


def test_table_of_sizes_is_what_the_planner_makes() -> None:
    assert RESULT.read_text().splitlines() == [*lines()], "stale: run `python -m bench sizes`"


@pytest.mark.parametrize(
    ("model", "method", "hardware", "context"),
    [
        ("8B (Llama 3.1)", "full", "8 GPUs", 4096),
        ("8B (Llama 3.1)", "full", "8 GPUs", 65_536),
        ("8B (Llama 3.1)", "lora", "1 GPU", 4096),
        ("70B (Llama 3.1)", "lora", "8 GPUs", 4096),
        ("70B (Llama 3.1)", "full", "64 GPUs", 131_072),
    ],
)
def test_sizes_that_people_adapt_fit_in_every_stage(
    model: str, method: str, hardware: str, context: int
) -> None:
    estimated = planned(model, method, hardware, context)
    assert estimated.problems == ()
    assert [need.stage for need in estimated.needs] == [
        "prepare", "baseline", "pretrain", "blend", "evaluate", "finetune", "align", "verify", "publish",
    ]  # fmt: skip
    assert all(need.memory_bytes <= need.limit_bytes for need in estimated.needs)


def test_one_card_that_cannot_hold_seventy_billion_parameters_is_refused() -> None:
    estimated = planned("70B (Llama 3.1)", "full", "1 GPU", 4096)
    blocks = [problem.split(" need")[0] for problem in estimated.problems]
    assert blocks == ["pretraining", "finetuning", "preference", "baseline, blend, evaluate and verify"]
    assert all("what would fit: " in problem for problem in estimated.problems)
