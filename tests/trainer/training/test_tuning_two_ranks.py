"""Tests that two ranks tune as one does: fine-tuning with ragged responses, preference tuning with its reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.rank_processes import run_ranks
from support.toy_training import FILTERS, make_work_volume
from support.tuning_ranks import tune, tune_rank
from support.tuning_texts import write_instructions, write_pairs

pytestmark = [
    pytest.mark.torch,
    pytest.mark.distributed,
    *(pytest.mark.filterwarnings(line) for line in FILTERS),
]


def test_two_ranks_tune_as_one(tmp_path: Path) -> None:
    make_work_volume(tmp_path)
    write_instructions(tmp_path, [("why?" * (1 + n % 4), "so " * (1 + 5 * (n % 3))) for n in range(9)])
    write_pairs(tmp_path, [(f"q{n}", "yes " * (1 + n), "no " * (6 - n)) for n in range(5)])
    assert run_ranks(tune_rank, tmp_path, ranks=2) == [0, 0]
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    alone = tune(tmp_path, 0, 1)
    assert len(alone) == 3 + 2 + 1
    for one, two in zip(alone, found[0], strict=True):
        assert two == pytest.approx(one, abs=1e-5, rel=1e-4)
