"""Tests the penalties on a module in one process: their gradients are those of their formulas."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.pretrain import RegularizationConfig
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.training.regularization import causal_predictions, estimate_fisher, single_process_penalty
from support.toy_training import VOCABULARY, make_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("toy")
    make_model(folder / "model")
    return folder


@pytest.fixture
def model(weights: Any) -> Any:
    return load_model(weights, ModelReference(weights="model"), precision="fp32")


def sequence(seed: int, length: int = 12) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (1, length), generator=generator)
    labels = ids.clone()
    labels[0, length // 2] = -100
    return {"input_ids": ids, "labels": labels, "position_ids": torch.arange(length)[None]}


def moved(model: Any, by: float = 0.02) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * by)


def gradients(model: Any) -> dict[str, Any]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("kind", ["ewc", "l2sp"])
def test_a_distance_has_the_gradient_of_its_formula(model: Any, kind: Any) -> None:
    rows = [sequence(seed) for seed in range(3)]
    anchor = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    penalty = single_process_penalty(
        RegularizationConfig(kind=kind, strength=0.3, samples=3, parameters="mlp"), model, general=rows
    )
    fisher = estimate_fisher(
        model.eval(), list(enumerate(rows)), [name for name in anchor if ".mlp." in name], seed=0
    )
    mean = sum(float(f.sum()) for f in fisher.values()) / sum(f.numel() for f in fisher.values())
    moved(model)
    penalty.add_gradients(0)
    found, value = gradients(model), penalty.value()
    model.zero_grad()
    expected = torch.zeros(())
    for name, weight in model.named_parameters():
        if ".mlp." in name:
            importance = fisher[name] / mean if kind == "ewc" else 1.0
            expected = expected + 0.15 * (importance * (weight - anchor[name]) ** 2).sum()
    expected.backward()
    wanted = gradients(model)
    assert set(found) == set(wanted)
    assert len(found) == 6
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7)


def test_the_divergence_has_the_gradient_of_its_formula(model: Any) -> None:
    rows = [sequence(seed) for seed in range(4)]
    penalty = single_process_penalty(
        RegularizationConfig(kind="klToBase", strength=0.3), model, general=rows, kl_rows=2
    )
    with torch.no_grad():
        base = [causal_predictions(model, row) for row in rows]
    penalty.add_gradients(0)
    assert penalty.value() == pytest.approx(0.0, abs=1e-9)
    model.zero_grad()
    moved(model)
    penalty.add_gradients(1)
    found, value = gradients(model), penalty.value()
    model.zero_grad()
    total, places = torch.zeros(()), 0
    for row, logits in zip(rows[2:], base[2:], strict=True):
        ours = causal_predictions(model, row)
        total = total + torch.nn.functional.kl_div(
            ours.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="sum"
        )
        places += len(ours)
    assert places == 20
    (0.3 * total / places).backward()
    assert value == pytest.approx(0.3 * float(total.detach()) / places, rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)
