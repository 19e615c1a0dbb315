"""Tests that a loaded optimizer whose averages do not fit its weights is refused before a kernel touches them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dapt_trainer.training.engine.left_out_weights import require_fitting_states

pytestmark = pytest.mark.torch
States = dict[str, Any]
UNFIT: dict[str, Callable[[States], object]] = {
    "shorter": lambda states: states.update(exp_avg=torch.zeros(7)),
    "longer": lambda states: states.update(exp_avg_sq=torch.zeros(1000)),
    "one number": lambda states: states.update(exp_avg=torch.zeros(())),
    "empty": lambda states: states.update(exp_avg=torch.zeros(0)),
    "whole numbers": lambda states: states.update(exp_avg=torch.zeros(12, dtype=torch.int64)),
    "text": lambda states: states.update(exp_avg="zeros"),
    "missing": lambda states: states.pop("exp_avg"),
    "a step alone": lambda states: (states.pop("exp_avg"), states.pop("exp_avg_sq")),
    "one more of another size": lambda states: states.update(max_exp_avg_sq=torch.zeros(3)),
}


def optimizer() -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.ones(3, 4))
    made = torch.optim.AdamW([weight])
    weight.sum().backward()
    made.step()
    return made


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_states_of_an_optimizer_that_has_stepped_fit(is_wrapped: bool) -> None:
    inner = optimizer()
    engine: Any = SimpleNamespace(optimizer=SimpleNamespace(optimizer=inner) if is_wrapped else inner)
    require_fitting_states(engine)
    inner.state.clear()  # one that has not stepped yet
    require_fitting_states(engine)


@pytest.mark.parametrize("name", UNFIT)
def test_states_that_do_not_fit_are_refused(name: str) -> None:
    inner = optimizer()
    (states,) = inner.state.values()
    UNFIT[name](states)
    engine: Any = SimpleNamespace(optimizer=inner)
    with pytest.raises(ValueError, match=r"^(the optimizer lacks|\w+ (has|of the optimizer))"):
        require_fitting_states(engine)
