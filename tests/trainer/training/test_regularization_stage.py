"""Tests penalties in the pretrain stage: DeepSpeed trains what the formulas say, and a resume repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig, LoraConfig, ModelReference
from dapt_contract.stages.pretrain import PretrainReport, RegularizationConfig
from dapt_trainer.context import SilentProgress
from dapt_trainer.errors import InputError
from dapt_trainer.stages import pretrain
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config
from support.written import load_recipe

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
EWC = RegularizationConfig(kind="ewc", strength=20.0, samples=6)
KL = RegularizationConfig(kind="klToBase", strength=5.0)
L2SP = RegularizationConfig(kind="l2sp", strength=20.0)
LORA = LoraConfig(rank=4, alpha=8)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class DiesAtStep(SilentProgress):
    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, **fields: Any) -> None:
        if fields.get("activity") == "training" and fields.get("step") == self.step:
            raise Killed


def config(zero_stage: Any = 0, precision: Any = "fp32", **changes: Any) -> Any:
    distribution = DistributionConfig(zero_stage=zero_stage, precision=precision)
    return pretrain_config(**({"lora": None, "regularization": EWC, "distribution": distribution} | changes))


def trained(work: Path, settings: Any, **options: Any) -> PretrainReport:
    return pretrain.run(settings, make_context(work, work / "scratch", settings, **options))


def curve(report: PretrainReport) -> list[tuple[Any, ...]]:
    return [(point.step, point.loss_nats, point.gradient_norm, point.penalty_nats) for point in report.curve]


def stored_fisher(work: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    (path,) = work.glob("stages/pretrain-a1/try-*/fisher-*/part-000-001.safetensors")
    return dict(load_file(path))


def weights_at(work: Path, step: int, lora: bool) -> dict[str, Any]:
    checkpoint = f"stages/pretrain-a1/try-1/checkpoint-{step}"
    reference = (
        ModelReference(weights="model", adapters=(checkpoint,))
        if lora
        else ModelReference(weights=checkpoint)
    )
    return dict(load_recipe(work, reference, precision="fp32").named_parameters())


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_the_reported_penalty_is_the_one_of_the_checkpoints_weights(
    tmp_path: Path, zero_stage: int, lora: LoraConfig | None
) -> None:
    work = make_work_volume(tmp_path)
    report = trained(work, config(zero_stage, lora=lora))
    base = dict(load_recipe(work, ModelReference(weights="model"), precision="fp32").named_parameters())
    fisher = stored_fisher(work)
    assert sum(float(f.sum()) for f in fisher.values()) / sum(
        f.numel() for f in fisher.values()
    ) == pytest.approx(1.0, rel=1e-5)
    assert report.penalties[0].penalty_nats == 0.0
    for step in (2, 4):
        weights = weights_at(work, step, lora is not None)
        wanted = sum(
            10.0 * float((fisher[name] * (weights[name] - base[name]).detach() ** 2).sum()) for name in fisher
        )
        assert wanted > 0.001
        assert report.penalties[step].penalty_nats == pytest.approx(wanted, rel=2e-4)


@pytest.mark.parametrize("asked", [EWC, KL], ids=["ewc", "kl"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_stages_and_micro_batches_do_not_change_what_is_trained(
    tmp_path: Path, asked: RegularizationConfig, lora: LoraConfig | None
) -> None:
    curves = []
    for number, (zero_stage, micro_batch_size) in enumerate([(0, 4), (1, 1), (2, 2)]):
        work = make_work_volume(tmp_path / str(number))
        settings = config(zero_stage, lora=lora, regularization=asked, micro_batch_size=micro_batch_size)
        curves.append(curve(trained(work, settings)))
    for other in curves[1:]:
        for found, expected in zip(other, curves[0], strict=True):
            assert found[1] == pytest.approx(expected[1], abs=2e-6)
            assert found[2] == pytest.approx(expected[2], rel=1e-4)
            assert found[3] == pytest.approx(expected[3], rel=1e-4, abs=5e-7)
    assert curves[0][-1][3] > 1e-4


@pytest.mark.parametrize(
    ("zero_stage", "precision", "lora", "asked"),
    [
        (0, "fp32", None, EWC),
        (0, "bf16", None, EWC),
        (1, "bf16", None, L2SP),
        (2, "bf16", LORA, EWC),
        (2, "bf16", None, KL),
        (2, "fp32", LORA, KL),
    ],
)
def test_a_killed_and_resumed_run_repeats_losses_and_penalties_to_the_bit(
    tmp_path: Path, zero_stage: int, precision: str, lora: LoraConfig | None, asked: RegularizationConfig
) -> None:
    settings = config(zero_stage, precision, lora=lora, regularization=asked)
    unbroken = trained(make_work_volume(tmp_path / "a"), settings)
    work = make_work_volume(tmp_path / "b")
    with pytest.raises(Killed):
        trained(work, settings, progress=DiesAtStep(5))
    resumed = trained(work, settings, try_number=2)
    assert curve(resumed) == curve(unbroken)
    assert resumed.penalties == unbroken.penalties
    assert len(resumed.penalties) == 6
    assert resumed.penalties[-1].penalty_nats > 1e-4
    assert len(list(work.glob("stages/pretrain-a1/try-*/fisher-*.json"))) == (asked.kind == "ewc")


def test_half_the_micro_batch_resumes_with_the_same_penalty(tmp_path: Path) -> None:
    unbroken = trained(make_work_volume(tmp_path / "a"), config())
    work = make_work_volume(tmp_path / "b")
    with pytest.raises(Killed):
        trained(work, config(), progress=DiesAtStep(5))
    halved = trained(work, config(micro_batch_size=1), try_number=2)
    for found, expected in zip(curve(halved), curve(unbroken), strict=True):
        assert found[1] == pytest.approx(expected[1], abs=2e-6)
        assert found[3] == pytest.approx(expected[3], rel=1e-5)


def test_zero_stage_3_is_refused(tmp_path: Path) -> None:
    work = make_work_volume(tmp_path)
    with pytest.raises(InputError) as refused:
        trained(work, config(3))
    assert str(refused.value) == (
        "pretraining.regularization works with zeroStage 0, 1 and 2 and without offload, and this run has zeroStage 3 "
        "and offload none; set pretraining.distribution.zeroStage to 2 and offload to none, or remove regularization"
    )
