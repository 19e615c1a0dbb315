"""Tests penalties on the effective weights of adapters, which are computed one layer at a time."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.stages.common import LoraConfig, ModelReference
from dapt_contract.stages.pretrain import RegularizationConfig
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.training.regularization import single_process_penalty
from dapt_trainer.training.regularization.low_rank import (
    LayerTerm,
    LowRankPenalty,
    adapted_layers,
    share_of_layers,
)
from dapt_trainer.training.regularization.optimizer_slices import plain_weights
from support.toy_training import FILTERS, make_model

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]
ROWS = [
    {
        "input_ids": torch.tensor([[3, 9, 27, 81, 6, 18]]) + seed,
        "labels": torch.tensor([[3, 9, 27, 81, 6, 18]]) + seed,
        "position_ids": torch.arange(6)[None],
    }
    for seed in range(3)
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("toy")
    make_model(folder / "model")
    return folder


@pytest.fixture
def model(weights: Any) -> Any:
    plain = load_model(weights, ModelReference(weights="model"), precision="fp32")
    return with_lora(plain, LoraConfig(rank=3, alpha=12), seed=1)


def trained(model: Any) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def moved(model: Any) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in trained(model).values():
            weight.add_(torch.randn_like(weight) * 0.1)


def dense(layer: Any, importance: Any, base: Any, strength: float) -> Any:
    """The penalty of a layer by its definition, for autograd."""
    module = layer.module
    delta = module.get_delta_weight("default") + (0.0 if base is None else layer.weight - base)
    return strength / 2 * ((1.0 if importance is None else importance) * delta**2).sum()


@pytest.mark.parametrize("kind", ["ewc", "l2sp"])
@pytest.mark.parametrize("merged", [False, True], ids=["fresh", "merged-start"])
def test_adapters_get_the_gradient_of_the_dense_penalty(model: Any, kind: str, merged: bool) -> None:
    layers = adapted_layers(model)
    assert len(layers) == 14
    torch.manual_seed(7)
    importance = {layer.name: torch.rand_like(layer.weight) if kind == "ewc" else None for layer in layers}
    base = {
        layer.name: layer.weight + 0.1 * torch.randn_like(layer.weight) if merged else None
        for layer in layers
    }
    terms = [LayerTerm(layer, importance[layer.name], base[layer.name]) for layer in layers]
    penalty = LowRankPenalty(0.7, terms, layers, plain_weights(model))
    moved(model)
    penalty.add_gradients(0)
    found = {name: weight.grad.clone() for name, weight in trained(model).items()}
    model.zero_grad()
    wanted = sum(dense(layer, importance[layer.name], base[layer.name], 0.7) for layer in layers)
    wanted.backward()
    assert penalty.value() == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert len(found) == 28
    for name, weight in trained(model).items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_a_penalty_of_adapters_weighs_the_base_models_layers(model: Any, weights: Any) -> None:
    asked = RegularizationConfig(kind="ewc", strength=1.0, samples=3, parameters="attention")
    penalty = single_process_penalty(asked, model, general=ROWS, seed=3)
    plain = load_model(weights, ModelReference(weights="model"), precision="fp32")
    names = [layer.name for layer in adapted_layers(model) if ".self_attn." in layer.name]
    assert set(names) <= {name for name, _ in plain.named_parameters()}
    from dapt_trainer.training.regularization.fisher import estimate_fisher, scaled_to_mean_one

    fisher = scaled_to_mean_one(estimate_fisher(plain, list(enumerate(ROWS)), names, seed=3))
    moved(model)
    penalty.add_gradients(0)
    wanted = sum(
        dense(layer, fisher[layer.name], None, 1.0) for layer in adapted_layers(model) if layer.name in fisher
    )
    assert penalty.value() == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert {name.split(".")[5] for name, weight in trained(model).items() if weight.grad is not None} == {
        "self_attn"
    }


def test_layers_are_divided_evenly_among_ranks_and_each_once(model: Any) -> None:
    layers = adapted_layers(model)
    shares = [share_of_layers(layers, rank, 3) for rank in range(3)]
    assert sorted(layer.name for share in shares for layer in share) == sorted(layer.name for layer in layers)
    loads = [sum(layer.weight.numel() for layer in share) for share in shares]
    assert max(loads) - min(loads) <= max(layer.weight.numel() for layer in layers)
