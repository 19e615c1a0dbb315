"""Tests that gradients of many micro-batches are summed in fp32 while the weights are bf16."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.stages.common import DistributionConfig, OptimizerConfig
from dapt_trainer.distributed import join_ranks
from dapt_trainer.training.arguments import deepspeed_settings
from support.toy_training import FILTERS

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
MICRO_BATCHES, WIDTH = 128, 64


def rounded_weight() -> Any:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, WIDTH, bias=False).to(torch.bfloat16)


def micro_batches() -> Any:
    return torch.randn(MICRO_BATCHES, 8, WIDTH, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def loss_of(model: Any, rows: Any) -> Any:
    return (model(rows).float() ** 2).mean()


def engine_of(zero_stage: Any) -> Any:
    """An engine that sums the gradients of all micro-batches."""
    import deepspeed

    join_ranks(0, 0, 1)
    model = rounded_weight()
    distribution = DistributionConfig(zero_stage=zero_stage, precision="bf16")
    settings = deepspeed_settings(distribution, OptimizerConfig(learning_rate=1e-3)) | {
        "train_batch_size": MICRO_BATCHES,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": MICRO_BATCHES,
    }
    zero: Any = settings["zero_optimization"]
    settings["zero_optimization"] = {name: value for name, value in zero.items() if value != "auto"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


def summed_gradient(zero_stage: Any) -> Any:
    """[WIDTH, WIDTH] before the optimizer's step."""
    from deepspeed.utils import safe_get_full_grad

    engine = engine_of(zero_stage)
    for rows in micro_batches():
        engine.backward(loss_of(engine, rows))
        if engine.is_gradient_accumulation_boundary():
            return safe_get_full_grad(engine.module.weight).float()
        engine.step()
    raise AssertionError("no step was due")


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_gradients_of_many_micro_batches_are_summed_in_fp32(zero_stage: int) -> None:
    expected = torch.zeros(WIDTH, WIDTH)
    for rows in micro_batches():
        model = rounded_weight()
        loss_of(model, rows).backward()
        expected += model.weight.grad.float() / MICRO_BATCHES
    found = summed_gradient(zero_stage)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_stage_1_keeps_no_bf16_gradients_besides_their_fp32_sums() -> None:
    engine = engine_of(1)
    engine.backward(loss_of(engine, micro_batches()[0]))
    assert engine.module.weight.grad is None
