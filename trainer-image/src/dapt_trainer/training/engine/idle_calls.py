"""Leaves out calls of DeepSpeed's engine that change nothing and cost time in each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.loading.sharding import unwrapped

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def leave_out_idle_calls(engine: DeepSpeedEngine, ranks: Ranks) -> None:
    """Make such calls return at once."""
    _switch_mode_once(engine)
    _clear_gradients_by_list(engine)
    _reduce_over_peers_only(engine, ranks)


def _switch_mode_once(engine: DeepSpeedEngine) -> None:
    """Make a call for training mode cost nothing where the model is in it: the Trainer calls for each micro-batch.

    The mode of all modules follows that of the outermost ones, which evaluations switch.
    """
    train, module, core = engine.train, engine.module, unwrapped(engine)

    def train_if_needed(mode: bool = True) -> None:
        if not (mode and module.training and core.training):
            train(mode)

    vars(engine)["train"] = train_if_needed


def _clear_gradients_by_list(engine: DeepSpeedEngine) -> None:
    """Clear gradients without walking through all modules, which the Trainer and the engine do once a step each."""
    trained = [weight for weight in engine.module.parameters() if weight.requires_grad]

    def clear() -> None:
        for weight in trained:
            weight.grad = None

    vars(engine)["zero_grad"] = clear


def _reduce_over_peers_only(engine: DeepSpeedEngine, ranks: Ranks) -> None:
    """Leave out the reduction of a single rank's gradients: DeepSpeed would copy all of them twice for nothing.

    From stage 1 on the reduction is also what hands the gradients to the optimizer.
    """
    if ranks.world_size == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False
