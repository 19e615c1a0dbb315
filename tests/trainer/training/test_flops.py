"""Tests the arithmetic of a token: six FLOPs for each weight, four for one that is frozen."""

from __future__ import annotations

import pytest

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
