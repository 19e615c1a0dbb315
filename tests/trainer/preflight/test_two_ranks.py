"""Tests the preflight of two ranks over gloo, each as a node of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.preflight_ranks import measure, talk_to_nobody
from support.rank_processes import run_ranks

pytestmark = [pytest.mark.torch, pytest.mark.distributed]


def test_preflight_measures_links_volume_and_clocks(tmp_path: Path) -> None:
    assert run_ranks(measure, tmp_path, {}, ranks=2) == [0, 0]
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert (first["failures"], second) == ([], {"failures": [], "reading": None})
    reading = first["reading"]
    numbers = {name: value for name, value in reading.items() if name not in ("slowest_link", "warnings")}
    assert numbers.pop("clock_difference_seconds") >= 0  # of one clock, rounded
    assert all(value is not None and value > 0 for value in numbers.values()), numbers
    assert reading["slowest_link"] in (
        "rank 0 on node 0 (host-0) to rank 1 on node 1 (host-1)",
        "rank 1 on node 1 (host-1) to rank 0 on node 0 (host-0)",
    )
    assert reading["warnings"] == []
    assert not list(tmp_path.rglob(".preflight-*"))


def test_preflight_fails_on_every_rank_with_the_same_causes(tmp_path: Path) -> None:
    bounds = {"min_all_reduce_gib_per_second": 9e5, "min_write_mib_per_second": 9e5}
    assert run_ranks(measure, tmp_path, bounds, ranks=2) == [0, 0]
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert first["failures"] == second["failures"]
    all_reduce, *writes = first["failures"]
    assert all_reduce.startswith("preflight: the all-reduce over 2 ranks has a bus bandwidth of ")
    assert [text.split(" writes")[0] for text in writes] == [
        "preflight: node 0 (host-0)",
        "preflight: node 1 (host-1)",
    ]
    assert first["reading"] is not None  # the numbers are published although the stage fails


def test_preflight_names_a_link_that_carries_nothing(tmp_path: Path) -> None:
    assert run_ranks(talk_to_nobody, tmp_path, ranks=2) == [0, 0]
    assert (tmp_path / "said").read_text() == (
        "preflight: rank 0 on node 0 could not exchange 1,024 bytes with rank 1 on node 1 within 1 s: look at the "
        "network between these nodes, or cordon one of them"
    )
