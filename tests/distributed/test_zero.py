"""Tests that every ZeRO stage trains the same model, and continues on another number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dapt_contract.stages.pretrain import PretrainReport
from support.toy_gang import Gang, run_gang
from support.toy_training import make_work_volume

pytestmark = [pytest.mark.torch, pytest.mark.distributed]
MODES: dict[str, dict[str, Any]] = {
    "zero-1": {"zero_stage": 1},
    "zero-2": {"zero_stage": 2},
    "zero-3": {"zero_stage": 3},
    "zero-1-offload-optimizer": {"zero_stage": 1, "offload": "optimizer"},
    "zero-3-offload-all": {"zero_stage": 3, "offload": "all"},
}
LAST = "checkpoint-6"


def changes(mode: dict[str, Any], *, lora: bool) -> dict[str, Any]:
    return {"distribution": {"precision": "fp32"} | mode, "lora": lora}


def weights(work: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, by name."""
    files = next(work.rglob(LAST)).glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}


Reference = Callable[[bool], tuple[PretrainReport, dict[str, torch.Tensor]]]


@pytest.fixture
def reference(unbroken: Callable[..., Gang]) -> Reference:
    """One rank without ZeRO, for full and for LoRA: what all others are compared with."""

    def of(lora: bool) -> tuple[PretrainReport, dict[str, torch.Tensor]]:
        gang = unbroken(changes({"zero_stage": 0}, lora=lora), ranks=1)
        return gang.report, weights(gang.work)

    return of


def assert_same_training(one: PretrainReport, other: PretrainReport, *, nats: float) -> None:
    assert [(point.step, point.tokens) for point in one.curve] == [
        (point.step, point.tokens) for point in other.curve
    ]
    for mine, theirs in zip(one.curve, other.curve, strict=True):
        assert mine.loss_nats == pytest.approx(theirs.loss_nats, abs=nats)
        assert mine.gradient_norm == pytest.approx(theirs.gradient_norm, abs=100 * nats)
    for checkpoint, twin in zip(one.facts.checkpoints, other.facts.checkpoints, strict=True):
        for name in ("domain_a_nats", "domain_b_nats", "general_a_nats", "general_b_nats"):
            assert getattr(checkpoint, name) == pytest.approx(getattr(twin, name), abs=nats), name


@pytest.mark.parametrize(
    ("mode", "lora"),
    [(name, False) for name in MODES] + [(name, True) for name in ("zero-3", "zero-3-offload-all")],
    ids=lambda value: value if isinstance(value, str) else ("lora" if value else "full"),
)
def test_every_mode_trains_the_same_model(
    tmp_path: Path, reference: Reference, mode: str, lora: bool
) -> None:
    work = make_work_volume(tmp_path)
    report = run_gang(work, 1, changes(MODES[mode], lora=lora)).report
    expected, expected_weights = reference(lora)
    assert_same_training(report, expected, nats=1e-5)
    found = weights(work)
    assert sorted(found) == sorted(expected_weights)
    for name, tensor in found.items():
        assert tensor.dtype == expected_weights[name].dtype
        torch.testing.assert_close(tensor, expected_weights[name], atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("mode", "lora", "before", "after"),
    [
        ("zero-1", False, 2, 1),
        ("zero-3", False, 2, 1),
        ("zero-3", False, 1, 2),
        ("zero-3", True, 2, 1),
    ],
)
def test_another_number_of_ranks_continues_at_the_next_sample(
    tmp_path: Path, reference: Reference, mode: str, lora: bool, before: int, after: int
) -> None:
    wanted = changes(MODES[mode], lora=lora)
    work = make_work_volume(tmp_path)
    assert -9 in run_gang(work, 1, wanted, "save:6", ranks=before).exit_codes
    resumed = run_gang(work, 2, wanted, ranks=after).report
    assert [row.try_number for row in resumed.facts.checkpoints] == [1, 1, 2]
    assert_same_training(resumed, reference(lora)[0], nats=1e-4)


def test_stage_1_in_bf16_continues_on_another_number_of_ranks(
    tmp_path: Path, unbroken: Callable[..., Gang]
) -> None:
    wanted = changes(MODES["zero-1"] | {"precision": "bf16"}, lora=False)
    work = make_work_volume(tmp_path)
    assert -9 in run_gang(work, 1, wanted, "save:6").exit_codes
    resumed = run_gang(work, 2, wanted, ranks=1).report
    assert_same_training(resumed, unbroken(wanted, ranks=2).report, nats=2e-3)


@pytest.mark.parametrize("mode", ["zero-1", "zero-3"])
def test_ranks_that_share_a_model_resume_to_the_unbroken_curve(tmp_path: Path, mode: str) -> None:
    wanted = changes(MODES[mode] | {"precision": "bf16"}, lora=False)
    whole = make_work_volume(tmp_path / "a")
    unbroken = run_gang(whole, 1, wanted).report
    work = make_work_volume(tmp_path / "b")
    assert -9 in run_gang(work, 1, wanted, "step:3").exit_codes
    resumed = run_gang(work, 2, wanted).report
    assert [(p.step, p.loss_nats, p.gradient_norm) for p in resumed.curve] == [
        (p.step, p.loss_nats, p.gradient_norm) for p in unbroken.curve
    ]
    assert [row.weights_digest for row in resumed.facts.checkpoints] == [
        row.weights_digest for row in unbroken.facts.checkpoints
    ]


def test_a_spread_model_stops_with_a_checkpoint_at_a_stop_request_of_one_rank(tmp_path: Path) -> None:
    stopped = run_gang(make_work_volume(tmp_path), 1, changes(MODES["zero-3"], lora=True), "term:2")
    assert stopped.exit_codes == [143, 143]
    assert stopped.said(0) == "StopRequested: stop requested at step 3 of 6; its checkpoint is complete"
    assert next(tmp_path.rglob("checkpoint-3")).joinpath("adapter_model.safetensors").is_file()
