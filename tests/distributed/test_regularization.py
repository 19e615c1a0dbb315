"""Tests penalties over two ranks: the training of one rank, with the penalty's memory divided among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.pretrain import PretrainReport, RegularizationConfig
from support.toy_gang import Gang, run_gang
from support.toy_training import make_work_volume

pytestmark = [pytest.mark.torch, pytest.mark.distributed]
Unbroken = Callable[..., Gang]
EWC = RegularizationConfig(kind="ewc", strength=20.0, samples=5)
KL = RegularizationConfig(kind="klToBase", strength=5.0)


def changes(
    zero_stage: int, asked: RegularizationConfig, *, lora: bool = False, precision: str = "fp32"
) -> dict[str, Any]:
    return {
        "distribution": {"zero_stage": zero_stage, "precision": precision},
        "lora": lora,
        "config": {"regularization": asked},
    }


def finished(work: Path, asked: dict[str, Any], *, ranks: int, number: int = 1) -> PretrainReport:
    return run_gang(work, number, asked, ranks=ranks).report


WEIGHTS = 260 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
"""Of the toy model: embedding (tied), two blocks, final norm."""
ADAPTED = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)


def held_bytes(work: Path) -> list[int]:
    return [int((work / f"penalty-bytes-{rank}.txt").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("zero_stage", "asked", "lora", "bytes_of_both", "largest_share"),
    [
        (0, EWC, False, 2 * 8 * WEIGHTS, 0.5),
        (1, EWC, False, 8 * WEIGHTS, 0.501),
        (2, EWC, False, 8 * WEIGHTS, 0.501),
        (2, EWC, True, 4 * ADAPTED, 0.6),
        (2, KL, False, 2 * 4 * WEIGHTS, 0.5),
        (0, KL, True, 0, 0.0),
    ],
    ids=["zero-0", "zero-1", "zero-2", "zero-2-lora", "kl", "kl-lora"],
)
def test_two_ranks_have_the_penalty_of_one_and_share_its_memory(
    unbroken: Unbroken,
    zero_stage: int,
    asked: RegularizationConfig,
    lora: bool,
    bytes_of_both: int,
    largest_share: float,
) -> None:
    alone = unbroken(changes(0, asked, lora=lora), ranks=1).report
    gang = unbroken(changes(zero_stage, asked, lora=lora), ranks=2)
    both = gang.report
    for one, two in zip(alone.curve, both.curve, strict=True):
        assert two.loss_nats == pytest.approx(one.loss_nats, abs=1e-6)
        assert two.penalty_nats == pytest.approx(one.penalty_nats, abs=1e-6, rel=1e-5)
        assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
    assert (alone.curve[-1].penalty_nats or 0.0) > 1e-3
    held = held_bytes(gang.work)
    assert sum(held) == bytes_of_both
    assert max(held) <= largest_share * bytes_of_both


def test_killed_ranks_resume_to_the_unbroken_curve_with_the_first_runs_fisher(
    tmp_path: Path, unbroken: Unbroken
) -> None:
    asked = changes(1, EWC, precision="bf16")  # trained by stage 2
    expected = unbroken(asked, ranks=2)
    alone = unbroken(asked, ranks=1).report
    for one, two in zip(alone.curve, expected.report.curve, strict=True):
        assert two.penalty_nats == pytest.approx(one.penalty_nats, rel=0.01, abs=1e-6)
    assert sum(held_bytes(expected.work)) == 4 * WEIGHTS
    work = make_work_volume(tmp_path)
    assert -9 in run_gang(work, 1, asked, "step:3").exit_codes
    resumed = finished(work, asked, ranks=2, number=2)
    assert [(point.loss_nats, point.penalty_nats) for point in resumed.curve] == [
        (point.loss_nats, point.penalty_nats) for point in expected.report.curve
    ]
    assert [path.parent.name for path in work.glob("stages/*/*/fisher-*.json")] == ["try-1"]


def test_another_number_of_ranks_continues_with_the_same_anchor(tmp_path: Path, unbroken: Unbroken) -> None:
    asked = changes(2, EWC)
    expected = unbroken(asked, ranks=2).report
    work = make_work_volume(tmp_path)
    assert -9 in run_gang(work, 1, asked, "save:6").exit_codes
    resumed = finished(work, asked, ranks=1, number=2)
    for one, two in zip(expected.curve, resumed.curve, strict=True):
        assert two.loss_nats == pytest.approx(one.loss_nats, abs=1e-5)
        assert two.penalty_nats == pytest.approx(one.penalty_nats, abs=1e-5)
