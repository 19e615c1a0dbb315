"""Tests which rank of a gang is called slow, from the times that ranks exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from dapt_trainer.context import RankPace

torch = pytest.importorskip("torch")
from dapt_trainer.distributed import Ranks  # noqa: E402
from dapt_trainer.training.rank_pace import INTERVAL_STEPS, ForwardClock, PaceOfRanks, slow_rank  # noqa: E402

pytestmark = pytest.mark.torch


@dataclass(frozen=True)
class RanksThatSay(Ranks):
    """Gathers what the test gives for the peers of this rank."""

    peers: tuple[RankPace, ...] = ()

    def gather(self, value: Any, value_type: Any) -> list[Any]:
        return [value_type.validate_json(value_type.dump_json(value)), *self.peers]


def pace_of(*peers: RankPace) -> PaceOfRanks:
    return PaceOfRanks(RanksThatSay(0, 0, 1 + len(peers), torch.device("cpu"), peers=peers))


def rank_of(pace: RankPace) -> int:
    return pace.rank


def peer(rank: int, wait: float, forward: float = 1.0) -> RankPace:
    return RankPace(rank, f"n{rank // 2}", wait, forward)


def test_a_rank_behind_the_median_is_named_with_its_node_once_it_was_so_twice() -> None:
    pace = pace_of(peer(1, 0.0), peer(2, 0.0), peer(3, 0.8, 1.2))
    for _ in range(INTERVAL_STEPS - 1):
        pace.add(0.0, 1.0, 4.0)
    assert pace.paces == ()
    pace.add(0.0, 1.0, 4.0)
    assert tuple(map(rank_of, pace.paces)) == (0, 1, 2, 3)
    assert pace.slow_rank == ""
    for _ in range(INTERVAL_STEPS):
        pace.add(0.0, 1.0, 4.0)
    assert pace.slow_rank == (
        "rank 3 on node n1 is 1 s behind its peers in each step of 4 s, 0.8 s of it waiting for its rows"
    )


def test_of_two_ranks_the_slower_is_behind_the_other() -> None:
    paces = (peer(0, 0.0), peer(1, 0.0, 1.5))
    found = slow_rank(paces, step_seconds=3.0)
    assert found is not None
    assert found.rank == 1
    assert slow_rank(paces, step_seconds=10.0) is None, "a twentieth of a step is noise"


def test_one_rank_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = pace_of()
    for _ in range(2 * INTERVAL_STEPS):
        pace.add(0.0, 1.0, 1.0)
    assert (pace.paces, pace.slow_rank) == ((), "")


def test_the_first_forward_pass_of_a_step_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((1.0, 1.5, 7.0, 8.0))
    monkeypatch.setattr("time.monotonic", lambda: next(seconds))
    module = torch.nn.Linear(1, 1)
    clock = ForwardClock(torch.device("cpu"))
    clock.attach(module)
    row = torch.zeros(1, 1)
    for _ in range(3):
        module(row)
    assert clock.take_seconds() == pytest.approx(1.5)
    assert clock.take_seconds() == 0.0
    module(row)
    clock.reset()  # that was a measurement
    assert clock.take_seconds() == 0.0
