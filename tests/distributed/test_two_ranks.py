"""Tests that two ranks give the same curve after any kill, and on any number of ranks that continues."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.pretrain import PretrainReport
from support.toy_gang import Gang, run_gang
from support.toy_training import make_work_volume

pytestmark = [pytest.mark.torch, pytest.mark.distributed]
Unbroken = Callable[..., Gang]
ZERO_2_LORA = {"distribution": {"zero_stage": 2, "precision": "fp32"}, "lora": True}
ZERO_0_FULL = {"distribution": {"zero_stage": 0, "precision": "fp32"}, "lora": False}
ZERO_3_FULL = {"distribution": {"zero_stage": 3, "precision": "fp32"}, "lora": False}
ZERO_2_FULL_BF16 = {"distribution": {"zero_stage": 2, "precision": "bf16"}, "lora": False}


def finished(work: Path, number: int, changes: dict[str, Any], *, ranks: int = 2) -> PretrainReport:
    return run_gang(work, number, changes, ranks=ranks).report


def assert_same_losses(one: PretrainReport, other: PretrainReport) -> None:
    """Bounds of sums in another order: 1e-5 nats a step, 1e-4 of the gradient's norm."""
    for mine, theirs in zip(one.curve, other.curve, strict=True):
        assert (mine.step, mine.tokens) == (theirs.step, theirs.tokens)
        assert mine.loss_nats == pytest.approx(theirs.loss_nats, abs=1e-5)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)


def curve(report: PretrainReport) -> list[tuple[Any, ...]]:
    return [(point.step, point.loss_nats, point.gradient_norm, point.tokens) for point in report.curve]


@pytest.mark.parametrize(
    ("changes", "deaths"),
    [(ZERO_2_LORA, ["step:3", "save:4"]), (ZERO_2_FULL_BF16, ["rename:4"]), (ZERO_0_FULL, ["step:5"])],
    ids=["zero-2-lora", "zero-2-full-bf16", "zero-0-full"],
)
def test_killed_ranks_resume_to_the_unbroken_curve(
    tmp_path: Path, unbroken: Unbroken, changes: dict[str, Any], deaths: list[str]
) -> None:
    expected = unbroken(changes).report
    work = make_work_volume(tmp_path)
    for number, death in enumerate(deaths, start=1):
        assert -9 in run_gang(work, number, changes, death).exit_codes
        assert not (work / f"report-{number}.json").exists()
    resumed = finished(work, len(deaths) + 1, changes)
    assert curve(resumed) == curve(expected)
    assert [row.weights_digest for row in resumed.facts.checkpoints] == [
        row.weights_digest for row in expected.facts.checkpoints
    ]
    assert resumed.facts.checkpoints[0].try_number == 1
    assert not list((work / "stages").rglob("*.partial"))


def test_a_stop_request_of_one_rank_stops_all_with_a_checkpoint(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    stopped = run_gang(work, 1, ZERO_2_LORA, "term:2")
    assert stopped.exit_codes == [143, 143]
    for rank in (0, 1):
        assert (
            stopped.said(rank) == "StopRequested: stop requested at step 3 of 6; its checkpoint is complete"
        )
    resumed = finished(work, 2, ZERO_2_LORA)
    assert [point.step for point in resumed.curve] == [1, 2, 3, 4, 5, 6]


def test_a_rank_with_slow_forward_passes_is_named(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    assert run_gang(work, 1, ZERO_0_FULL, "slow:").exit_codes == [0, 0]
    assert (work / "stages/pretrain-a1/try-1/slow-rank.txt").read_text().startswith("rank 1 on node ")


@pytest.mark.parametrize("changes", [ZERO_0_FULL, ZERO_2_FULL_BF16], ids=["zero-0", "zero-2-bf16"])
def test_a_gradient_of_one_rank_that_is_not_a_number_skips_the_step_on_both(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    steps = {"config": {"checkpoint_steps": (3, 4, 6)}}
    report = run_gang(make_work_volume(tmp_path), 1, changes | steps, "nan:4").report
    assert [point.step for point in report.curve if point.skipped] == [4]
    before, skipped, after = [row.weights_digest for row in report.facts.checkpoints]
    assert skipped == before != after


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [(ZERO_2_LORA, 2), (ZERO_0_FULL, 4), (ZERO_3_FULL, 4)],
    ids=["zero-2-lora-2", "zero-0-full-4", "zero-3-full-4"],
)
def test_any_number_of_ranks_trains_as_one_rank_does(
    unbroken: Unbroken, changes: dict[str, Any], ranks: int
) -> None:
    assert_same_losses(unbroken(changes, ranks=ranks).report, unbroken(changes, ranks=1).report)


@pytest.mark.parametrize("changes", [ZERO_2_LORA, ZERO_3_FULL], ids=["zero-2-lora", "zero-3-full"])
def test_two_ranks_that_share_each_sequence_train_as_one_does(
    tmp_path: Path, unbroken: Unbroken, changes: dict[str, Any]
) -> None:
    alone = unbroken(changes, ranks=1).report
    shared = {**changes, "distribution": {**changes["distribution"], "sequence_parallel": 2}}
    both = run_gang(make_work_volume(tmp_path), 1, shared).report
    assert both.attention.startswith("dapt_shared_sequence: 2 ranks share a sequence; sdpa: on the CPU")
    assert_same_losses(both, alone)


@pytest.mark.parametrize(
    "changes", [ZERO_0_FULL, ZERO_2_LORA, ZERO_2_FULL_BF16], ids=["zero-0", "zero-2-lora", "bf16"]
)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_continues_at_the_next_sample(
    tmp_path: Path, unbroken: Unbroken, changes: dict[str, Any], before: int, after: int
) -> None:
    expected = unbroken(changes, ranks=before).report
    work = make_work_volume(tmp_path)
    assert -9 in run_gang(work, 1, changes, "save:6", ranks=before).exit_codes
    resumed = finished(work, 2, changes, ranks=after)
    assert [row.try_number for row in resumed.facts.checkpoints] == [1, 1, 2]
    for one, two in zip(expected.curve, resumed.curve, strict=True):
        assert two.loss_nats == pytest.approx(one.loss_nats, abs=1e-4)
        assert (two.step, two.tokens) == (one.step, one.tokens)
