"""transformers' Trainer under DeepSpeed, with one hook at the end of each optimizer step.

The Trainer owns forward, backward, accumulation, clipping, optimizer and schedule; DeepSpeed owns the ranks' share of
them. What is ours: the order of the rows, one reduction a step for the readings that all ranks must agree on, and where
a checkpoint's files go.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from dapt_trainer.checkpoints.change_world_size import mend_optimizer
from dapt_trainer.checkpoints.inventory import RESUME_FOLDER
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.attention import stack_rows
from dapt_trainer.training.batch_order import BatchOrder
from dapt_trainer.training.regularization.penalty import Penalty


@dataclass(frozen=True)
class StepReading:
    """What all ranks agree on after an optimizer step."""

    step: int
    loss_nats: float
    """Mean over the label tokens of the global batch, without the penalty."""
    penalty_nats: float | None
    """What the regularization added to the loss; None without one."""
    gradient_norm: float | None
    """Before clipping, over all parameters; None where nobody computed it (no clipping, no ZeRO)."""
    learning_rate: float
    """That the step used."""
    tokens: int
    """Training tokens since the run's first step, over all ranks."""
    stop_requested: bool
    """Some rank saw SIGTERM."""
    out_of_time: bool
    """The time for training is used up."""
    seconds: float
    """Of this step."""

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.loss_nats) and math.isfinite(self.gradient_norm or 0.0)


class StepTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that reads a fixed order of rows and reports every step.

    Args:
        on_step: called on all ranks after each optimizer step; what it raises ends the training.
        order: rows of this rank.
        tokens_of_step: training tokens of a step (counted from 0) over all ranks.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: TrainingArguments,
        rows: Any,
        order: BatchOrder,
        ranks: Ranks,
        tokens_of_step: Callable[[int], int],
        stop_requested: Callable[[], bool],
        out_of_time: Callable[[], bool],
        heartbeat: Callable[[], None],
        on_step: Callable[[StepReading], None],
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("data_collator", stack_rows)
        super().__init__(model=model, args=args, train_dataset=rows, **kwargs)
        self._order = order
        self._ranks = ranks
        self._tokens_of_step = tokens_of_step
        self._stop_requested = stop_requested
        self._out_of_time = out_of_time
        self.on_ready: Callable[[], None] | None = None
        self._heartbeat = heartbeat
        self._on_step = on_step
        self._step_loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self._step_started = time.monotonic()
        self._last_step = 0
        self._weight_decays: list[float] = []
        self._penalty: Penalty | None = None

    def get_train_dataloader(self) -> Any:
        """One loader a rank that reads its own rows in their order; nothing to shard, shuffle or skip."""
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=self._order,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # a loader draws a seed when it starts; not from dropout's stream
            pin_memory=self.args.dataloader_pin_memory,
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; each group's weight decay is noted, since a resume may mix them up."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self._weight_decays = [group["weight_decay"] for group in optimizer.param_groups]
        return optimizer

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Everything is loaded, nothing trained yet: the place for a reading that an interrupted try still owes."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        mend_optimizer(self.model_wrapped, self._weight_decays)
        _keep_gradient_norm(self.model_wrapped)
        if self.on_ready is not None:
            self.on_ready()
        self._step_started = time.monotonic()
        return prepared

    def _prepare_input(self, data: Any) -> Any:
        """To the accelerator without waiting for it: the batch lies in pinned memory."""
        if isinstance(data, torch.Tensor) and not data.is_floating_point():
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch; its share of the step's loss is noted."""
        penalty = self._penalty
        if penalty is not None and penalty.before_last_backward and self.accelerator.sync_gradients:
            model.train()
            penalty.add_gradients(self.state.global_step)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss += loss
        self._heartbeat()
        return loss

    def hold_back(self, penalty: Penalty) -> None:
        """Add a penalty's gradient once an optimizer step, before clipping."""
        self._penalty = penalty
        if penalty.before_last_backward:
            return
        engine = self.model_wrapped
        update = engine.step

        def held_back_update(*args: Any, **kwargs: Any) -> Any:
            # All backward passes are done, and reduced over the ranks.
            penalty.add_gradients(self.state.global_step)
            return update(*args, **kwargs)

        engine.step = held_back_update

    def further_backward(self, loss: torch.Tensor) -> None:
        """A backward pass of the step beside those of its micro-batches, for a loss that is summed over ranks."""
        engine = self.model_wrapped
        engine.set_gradient_accumulation_boundary(is_boundary=False)
        # Gradients are averaged over the ranks.
        engine.backward(loss * self._ranks.world_size, scale_wrt_gas=False)
        self._heartbeat()

    def _maybe_log_save_evaluate(
        self,
        _tr_loss: Any,
        grad_norm: Any,
        *_args: Any,
        learning_rate: float | None = None,
        **_kwargs: Any,
    ) -> None:
        """End of an optimizer step (and once more at the end of the epoch, which is not a step)."""
        step = int(self.state.global_step)
        if step == self._last_step:
            return
        self._last_step = step
        loss, stop, late, penalty = self._ranks.sum(
            float(self._step_loss.item()),
            float(self._stop_requested()),
            float(self._out_of_time()),
            0.0 if self._penalty is None else self._penalty.value(),
        )
        self.state.num_input_tokens_seen += self._tokens_of_step(step - 1)
        self._step_loss.zero_()
        now = time.monotonic()
        reading = StepReading(
            step=step,
            loss_nats=loss / self._ranks.world_size,
            penalty_nats=None if self._penalty is None else penalty,
            gradient_norm=None if grad_norm is None else float(grad_norm),
            learning_rate=float(learning_rate if learning_rate is not None else math.nan),
            tokens=int(self.state.num_input_tokens_seen),
            stop_requested=stop > 0,
            out_of_time=late > 0,
            seconds=now - self._step_started,
        )
        self._on_step(reading)
        self._step_started = time.monotonic()

    def write_resume_state(self, checkpoint: Path) -> None:
        """Write everything that an exact resume needs below `checkpoint/resume`; called by all ranks.

        Optimizer and DeepSpeed state, schedule, random states of every rank, trainer state with the curve.

        Raises:
            OSError, RuntimeError: the disk is full.
        """
        folder = checkpoint / RESUME_FOLDER
        folder.mkdir(exist_ok=True)
        with _libraries_quiet():
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
        if self._ranks.is_first:
            for script in folder.glob("zero_to_*.py"):
                script.unlink()  # DeepSpeed leaves programs there; a checkpoint is data
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def resume_training(self, checkpoint: Path | None) -> None:
        """Train to the end, from the state that `write_resume_state` left or from the start."""
        if checkpoint is None:
            with _libraries_quiet():
                self.train()
            return
        self._last_step = self._order.first_step
        if self._order.first_step == self._order.total_steps:
            self._restore(checkpoint)
            return
        with _libraries_quiet():
            self.train(resume_from_checkpoint=str(checkpoint / RESUME_FOLDER))

    def _restore(self, checkpoint: Path) -> None:
        """Load a finished training's state and train nothing, for the reading that it may still owe."""
        steps = self._order.total_steps
        with _libraries_quiet():
            self._prepare_for_training(steps, self.get_train_dataloader(), str(checkpoint / RESUME_FOLDER))


def _keep_gradient_norm(engine: Any) -> None:
    """DeepSpeed without ZeRO in fp32 clips by the gradient norm and forgets it; keep it for the reading."""
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        engine._global_grad_norm = clip_grad_norm_(
            parameters=engine.module.parameters(), max_norm=engine.gradient_clipping(), mpu=engine.mpu
        )

    engine.clip_fp32_gradients = clip


@contextlib.contextmanager
def _libraries_quiet() -> Iterator[None]:
    """Hide what the libraries say about each other's deprecated calls, and accelerate's notice that DeepSpeed's number
    of accumulation steps counts, which is what is meant."""
    notices = logging.getLogger("accelerate.accelerator")
    level = notices.level
    notices.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        notices.setLevel(level)
