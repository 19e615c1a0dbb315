"""Compares what a training adds to two ranks' memory with the planner's estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import peaks

from support.toy_training import FILTERS

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.distributed,
    *(pytest.mark.filterwarnings(line) for line in FILTERS),
]


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_two_ranks_take_the_memory_that_is_estimated(tmp_path: Path, zero_stage: int) -> None:
    growth, whole = peaks.measure(peaks.Case("15M", "pretrain", "full", zero_stage), tmp_path)
    assert growth == pytest.approx(1.0, abs=peaks.TOLERANCE)
    assert whole < 1.0
