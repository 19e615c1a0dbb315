"""Tests that ranks which share a model read it once together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.loading_ranks import load_and_count
from support.rank_processes import run_ranks
from support.toy_training import make_model

pytestmark = [pytest.mark.torch, pytest.mark.distributed]


def test_each_rank_reads_what_it_keeps(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    assert run_ranks(load_and_count, tmp_path, ranks=2) == [0, 0]
    loaded = [json.loads((tmp_path / f"loaded-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["wrong"] for rank in loaded] == [[], []]
    whole = (tmp_path / "model/model.safetensors").stat().st_size
    for rank in loaded:
        assert 0.45 * whole < rank["bytes"] < 0.52 * whole
