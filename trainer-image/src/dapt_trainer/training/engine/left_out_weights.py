"""Leaves out of a resume state the weights that a resume has anyway, and restores them.

Frozen weights are loaded with the model. Of trained ones DeepSpeed's optimizers keep fp32 masters in their own state,
from which each step computes the weights; a resume does the same. Only stage 0 in fp32 has no masters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from dapt_trainer.modeling.loading.sharding import is_sharded

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_STATE = "module"
"""Key of the module's weights in DeepSpeed's state."""


@contextlib.contextmanager
def leaving_out_weights(engine: DeepSpeedEngine) -> Iterator[None]:
    """Make DeepSpeed save no weights within the block that a resume has anyway."""
    whole, left_out = engine.module_state_dict, _restorable(engine)

    def module_state_dict(**options: object) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in whole(**options).items() if name not in left_out}

    engine.module_state_dict = module_state_dict
    try:
        yield
    finally:
        del engine.module_state_dict


def _restorable(engine: DeepSpeedEngine) -> set[str]:
    """Return the names of the weights that a resume has without the module's state."""
    if is_sharded(engine.module):
        return set()  # the module's state has empty tensors
    has_masters = hasattr(engine.optimizer, "update_lp_params")
    # By identity, because a tied head is one parameter of two names.
    restorable = {
        id(parameter)
        for parameter in engine.module.parameters()
        if has_masters or not parameter.requires_grad
    }
    return {
        name for name, tensor in engine.module.state_dict(keep_vars=True).items() if id(tensor) in restorable
    }


def with_left_out_weights(engine: DeepSpeedEngine, content: object) -> object:
    """Return a loaded state whose module has all names, those that were left out with the values that they have now."""
    if not isinstance(content, dict) or not isinstance(content.get(_STATE), dict):
        return content
    return content | {_STATE: engine.module.state_dict() | content[_STATE]}


def restore_weights(engine: DeepSpeedEngine) -> None:
    """Compute the trained weights from the optimizer's masters, rounded as in a step; call it after loading."""
    update = getattr(engine.optimizer, "update_lp_params", None)
    if update is not None:
        update()


def require_fitting_states(engine: DeepSpeedEngine) -> None:
    """Refuse a loaded optimizer whose averages are not of the size of its weights; call it before the first step.

    The optimizers' kernels take sizes on trust: with a shorter average they read and write other memory.

    Raises:
        ValueError: one of them is of another size or type.
    """
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    expected = {"exp_avg", "exp_avg_sq"} if "Adam" in type(optimizer).__name__ else set()
    for weight, states in optimizer.state.items():
        if states and (missing := expected - states.keys()):
            raise ValueError(f"the optimizer lacks {' and '.join(sorted(missing))} of a weight")
        for name, state in states.items():
            if name == "step":
                continue  # counted as such when it was read
            if not isinstance(state, torch.Tensor) or not state.is_floating_point():
                raise ValueError(f"{name} of the optimizer is no tensor of numbers")
            if state.numel() != weight.numel():
                raise ValueError(f"{name} has {state.numel()} elements for {weight.numel()} weights")
