"""Tests how ranks exchange values: equal on all of them, and refused where they are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from support.rank_processes import run_ranks
from support.value_ranks import HONEST, exchange

pytestmark = [pytest.mark.torch, pytest.mark.distributed]


def test_ranks_exchange_values_and_refuse_what_is_none(tmp_path: Path) -> None:
    assert run_ranks(exchange, tmp_path, ranks=2) == [0, 0]
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    for text, number, counts in (first[0], second[0]):
        assert (text, counts) == (HONEST[0], HONEST[2])
        assert math.isnan(number)
    assert first[1] == second[1] == [["rank 0", 1e300, {}], ["rank 1" * 41, 1e300, {}]]
    *refusals, negative, empty, huge = second[2:]
    assert all("validation error" in refusal for refusal in refusals), refusals
    assert negative == "rank 0 sends a value of -1 bytes; the most is 67,108,864"
    assert empty == "rank 0 sends a value of 0 bytes; the most is 67,108,864"
    assert huge == "rank 0 sends a value of 67,108,865 bytes; the most is 67,108,864"
    assert not (tmp_path / "unpickled").exists()
