"""Penalties on an accelerator: the reported one is that of the checkpoint's weights, whatever holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig, LoraConfig, ModelReference
from dapt_contract.stages.pretrain import RegularizationConfig
from support.toy_training import FILTERS, make_context, make_work_volume, pretrain_config

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    *(pytest.mark.filterwarnings(line) for line in FILTERS),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def report_of(work: Path, kind: Any, zero_stage: Any, lora: LoraConfig | None) -> Any:
    from dapt_trainer.stages import pretrain

    config = pretrain_config(
        lora=lora,
        regularization=RegularizationConfig(kind=kind, strength=20.0, samples=6),
        distribution=DistributionConfig(zero_stage=zero_stage, precision="bf16"),
    )
    return pretrain.run(config, make_context(work, work / "scratch", config))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["full", "lora"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_the_reported_penalty_is_the_one_of_the_checkpoints_weights(
    tmp_path: Path, zero_stage: int, lora: LoraConfig | None
) -> None:
    from support.written import load_recipe

    work = make_work_volume(tmp_path)
    report = report_of(work, "l2sp", zero_stage, lora)
    checkpoint = "stages/pretrain-a1/try-1/checkpoint-4"
    reference = (
        ModelReference(weights="model", adapters=(checkpoint,))
        if lora
        else ModelReference(weights=checkpoint)
    )
    base = dict(load_recipe(work, ModelReference(weights="model"), precision="bf16").named_parameters())
    weights = dict(load_recipe(work, reference, precision="fp32").named_parameters())
    changed = [name for name in base if lora is None or "_proj" in name]
    wanted = sum(10.0 * float(((weights[name] - base[name].float()).detach() ** 2).sum()) for name in changed)
    # The checkpoint holds bf16 weights and the penalty reads fp32 masters.
    assert report.penalties[4].penalty_nats == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize("kind", ["ewc", "klToBase"])
def test_fisher_and_divergence_run_there(tmp_path: Path, kind: str) -> None:
    report = report_of(make_work_volume(tmp_path), kind, 2, None)
    assert report.penalties[0].penalty_nats == pytest.approx(0.0, abs=1e-3)
    assert report.penalties[-1].penalty_nats > 1e-3
