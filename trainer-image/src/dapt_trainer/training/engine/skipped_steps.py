"""Makes every kind of DeepSpeed engine skip a step whose gradient is not a number, on all ranks alike.

The gradient's norm decides. It is taken after the ranks have added up their gradients, so one rank's broken batch skips
the step on all of them, and no weight, moment or step count of the optimizer changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def skip_non_finite_steps(engine: DeepSpeedEngine) -> None:
    """Make the engine skip such steps and keep the norm of every step, which is then infinite or no number.

    DeepSpeed's own optimizers (ZeRO, and bf16 without ZeRO) skip them; torch's in fp32 without ZeRO does not. The
    learning rate follows the number of steps, skipped ones included, so that the schedule ends with the run.
    """
    step = engine.step
    trained = [weight for weight in engine.module.parameters() if weight.requires_grad]

    def clip() -> None:
        weights = [weight for weight in trained if weight.grad is not None]
        # Not DeepSpeed's own: it drops the norm, and takes its mean over ranks that all have the same one.
        norm = torch.nn.utils.clip_grad_norm_(weights, engine.gradient_clipping())
        engine._global_grad_norm = norm
        # torch's fused AdamW then changes nothing, not even its count of steps. The accelerator decides: to ask it here
        # would be to wait for it.
        engine.optimizer.found_inf = torch.isfinite(norm).logical_not().float()

    def step_and_forget_the_skip(*args: object, **kwargs: object) -> object:
        result = step(*args, **kwargs)
        # accelerate would hold the schedule back for a step that it takes for one of fp16's loss scaling.
        if getattr(engine.optimizer, "overflow", False):
            engine.optimizer.overflow = False
        return result

    engine.clip_fp32_gradients = clip
    engine.step = step_and_forget_the_skip
