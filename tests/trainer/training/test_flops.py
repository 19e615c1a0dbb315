"""Tests the arithmetic of a token: six FLOPs for each weight, four for one that is frozen."""

from __future__ import annotations

import pytest

from dapt_contract.inputs.model_files import active_parameters
from dapt_trainer.modeling.flops import flops_per_token
from support.toy_training import FILTERS

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, *(pytest.mark.filterwarnings(line) for line in FILTERS)]


def test_all_weights_trained_cost_six_each_and_frozen_ones_four() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 2, bias=False))
    assert flops_per_token(model) == 6 * 120
    model[0].weight.requires_grad = False
    assert flops_per_token(model) == 4 * 100 + 6 * 20


def test_weights_that_are_spread_over_ranks_count_whole() -> None:
    model = torch.nn.Linear(10, 10, bias=False)
    model.weight.ds_numel = 400  # as ZeRO's stage 3 marks what it took away
    assert flops_per_token(model) == 6 * 400


def test_of_a_mixture_those_experts_count_that_a_token_passes() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    config = transformers.Qwen3MoeConfig(
        vocab_size=16,
        moe_intermediate_size=4,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        **sizes,
    )
    model = transformers.Qwen3MoeForCausalLM(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    of_experts = 8 * 3 * 8 * 4
    total = sum(weight.numel() for weight in model.parameters())
    active = total - of_experts * 6 // 8
    assert active_parameters(config.to_dict(), shapes) == active
    assert flops_per_token(model) == 6 * active
    assert active_parameters({}, shapes) is None
