"""Tests exact resume in one process: a killed run and an unbroken one have the same curve, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig, LoraConfig
from dapt_contract.stages.pretrain import PretrainReport
from dapt_trainer.context import SilentProgress
from dapt_trainer.stages import pretrain
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config

pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class DiesAtStep(SilentProgress):
    """Dies right after a step's reading was shown, before its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, **fields: Any) -> None:
        if fields.get("activity") == "training" and fields.get("step") == self.step:
            raise Killed


def trained(work: Path, tmp_path: Path, config: Any, **options: Any) -> PretrainReport:
    return pretrain.run(config, make_context(work, tmp_path, config, **options))


def curve(report: PretrainReport) -> list[tuple[Any, ...]]:
    return [
        (point.step, point.loss_nats, point.learning_rate, point.gradient_norm, point.tokens)
        for point in report.curve
    ]


@pytest.mark.parametrize(
    ("zero_stage", "precision", "lora"),
    [
        (0, "fp32", None),
        (0, "bf16", None),
        (1, "bf16", None),
        (2, "fp32", None),
        (2, "bf16", LoraConfig(rank=4, alpha=8, dropout=0.1)),
        (0, "fp32", LoraConfig(rank=4, alpha=8)),
    ],
)
def test_a_killed_and_resumed_run_repeats_the_unbroken_curve(
    tmp_path: Path, zero_stage: Any, precision: Any, lora: LoraConfig | None
) -> None:
    distribution = DistributionConfig(zero_stage=zero_stage, precision=precision)
    config = pretrain_config(lora=lora, distribution=distribution)
    unbroken = trained(make_work_volume(tmp_path / "a"), tmp_path, config)
    work = make_work_volume(tmp_path / "b")
    with pytest.raises(Killed):
        trained(work, tmp_path, config, progress=DiesAtStep(5))
    resumed = trained(work, tmp_path, config, try_number=2)
    assert curve(resumed) == curve(unbroken)
    assert [row.step for row in resumed.facts.checkpoints] == [2, 4, 6]
    assert [row.try_number for row in resumed.facts.checkpoints] == [1, 1, 2]
    without_try = {"try_number": 0}
    assert [row.model_copy(update=without_try) for row in resumed.facts.checkpoints] == [
        row.model_copy(update=without_try) for row in unbroken.facts.checkpoints
    ]
    lines = (work / "stages/pretrain-a1/try-2/curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (3, 2)])
def test_a_run_whose_estimate_chose_another_zero_stage_continues(
    tmp_path: Path, before: Any, after: Any
) -> None:
    first, second = (
        pretrain_config(
            lora=None,
            distribution=DistributionConfig(
                zero_stage=stage, precision="bf16", gradient_checkpointing=stage == before
            ),
        )
        for stage in (before, after)
    )
    unbroken = trained(make_work_volume(tmp_path / "a"), tmp_path, first)
    work = make_work_volume(tmp_path / "b")
    with pytest.raises(Killed):
        trained(work, tmp_path, first, progress=DiesAtStep(5))
    resumed = trained(work, tmp_path, second, try_number=2)
    assert [row.try_number for row in resumed.facts.checkpoints] == [1, 1, 2]
    assert [point.loss_nats for point in resumed.curve] == pytest.approx(
        [point.loss_nats for point in unbroken.curve], abs=1e-3
    )
