"""Two ranks share the work and end with one process' numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.evaluation_ranks import evaluate_rank, measure
from support.rank_processes import run_ranks

pytestmark = [pytest.mark.torch, pytest.mark.distributed]


def test_two_ranks_measure_the_same_as_one(toy_work: Path, tmp_path: Path) -> None:
    assert run_ranks(evaluate_rank, toy_work, tmp_path, ranks=2) == [0, 0]
    results = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert results[0] == results[1]
    alone = measure(toy_work, tmp_path, 0, 1)
    assert results[0][:6] == pytest.approx(alone[:6], rel=1e-6)
    assert results[0][6:] == alone[6:]
