"""Runs transformers' Trainer under DeepSpeed with a hook at the end of each optimizer step.

The Trainer owns forward, backward, accumulation, clipping, optimizer and schedule; DeepSpeed owns the ranks' share of
them. Ours are the order of the rows, one reduction a step for the values that all ranks must agree on, and where a
checkpoint's files go.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from dapt_trainer.checkpoints.change_world_size import repair_optimizer
from dapt_trainer.checkpoints.inventory import RESUME_FOLDER
from dapt_trainer.checkpoints.resume_files import ResumeFiles
from dapt_trainer.context import RankPace
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.attention import Batch, Collate, stack_rows
from dapt_trainer.staged_files import StagedFiles
from dapt_trainer.training.batch_order import BatchOrder
from dapt_trainer.training.engine.idle_calls import leave_out_idle_calls
from dapt_trainer.training.engine.left_out_weights import (
    leaving_out_weights,
    require_fitting_states,
    restore_weights,
    with_left_out_weights,
)
from dapt_trainer.training.engine.skipped_steps import skip_non_finite_steps
from dapt_trainer.training.garbage import StepGarbage
from dapt_trainer.training.prefetch import PrefetchingLoader
from dapt_trainer.training.rank_pace import ForwardClock, PaceOfRanks
from dapt_trainer.training.regularization.penalty import Penalty


@dataclass(frozen=True)
class StepReading:
    """Holds what all ranks agree on after an optimizer step."""

    step: int
    loss_nats: float
    """Mean over the label tokens of the global batch, without the penalty."""
    penalty_nats: float | None
    """What the regularization added to the loss; None without one."""
    gradient_norm: float | None
    """Norm before clipping, over all parameters; None where nothing computes it (no clipping, no ZeRO)."""
    learning_rate: float
    """Learning rate of this step."""
    tokens: int
    """Training tokens since the run's first step, over all ranks."""
    stop_requested: bool
    """Whether some rank received SIGTERM."""
    out_of_time: bool
    """Whether some rank called for the end of training, or for a save, by its clock."""
    seconds: float
    """Duration of this step."""
    data_wait_seconds: float = 0.0
    """Part of it in which this rank waited for its rows."""
    slow_rank: str = ""
    """The rank that its peers wait for, in one sentence; empty without one."""
    rank_paces: tuple[RankPace, ...] = ()
    """Of each rank; empty before the first comparison, and with one rank."""

    @property
    def is_skipped(self) -> bool:
        """Return whether the step changed no weight, because its gradient is not a number."""
        return self.gradient_norm is not None and not math.isfinite(self.gradient_norm)


class RowSource(Protocol):
    """Describes a data set of a run: row `step * global_batch_size + i` is the i-th sequence of that step."""

    def __len__(self) -> int:
        """Return the number of rows of the whole run."""
        ...

    def __getitem__(self, index: int, /) -> object:
        """Return one row, which the collate function puts into a batch."""
        ...


@dataclass(frozen=True)
class StepRows:
    """Holds the rows that a run reads, and in which order."""

    dataset: RowSource
    order: BatchOrder
    """Rows of this rank."""
    tokens_of_step: Callable[[int], int]
    """Returns the training tokens of a step (counted from 0) over all ranks."""


@dataclass(frozen=True)
class StepHooks:
    """Holds the functions of a stage that the trainer calls, on every rank."""

    on_step: Callable[[StepReading], None]
    """Called after each optimizer step; what it raises ends the training."""
    stop_requested: Callable[[], bool]
    """Returns whether this rank received SIGTERM."""
    out_of_time: Callable[[], bool]
    """Returns whether this rank calls for the end of training, or for a save, by its clock."""
    heartbeat: Callable[[], None]
    on_ready: Callable[[], None] = lambda: None
    """Called when everything is loaded and nothing is trained yet."""


class StepTrainer(Trainer):  # type: ignore[misc] # mypy does not follow transformers: its classes are Any
    """Trains on a fixed order of rows and reports every step.

    Args:
        model: to train, with adapters where they are trained.
        args: the run's arguments.
        rows: what is read.
        ranks: that train.
        hooks: functions of the stage.
        collate: makes a batch of rows.
        kwargs: of the Trainer, or of a subclass of it that is another base of a subclass of this one.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        args: TrainingArguments,
        rows: StepRows,
        ranks: Ranks,
        hooks: StepHooks,
        collate: Collate = stack_rows,
        **kwargs: object,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=rows.dataset, data_collator=collate, **kwargs)
        # The Trainer adds it where progress bars are off, and it prints every entry of the log.
        self.remove_callback(PrinterCallback)
        self._rows = rows
        self._order = rows.order
        self._ranks = ranks
        self._hooks = hooks
        self._step_loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self._step_started = time.monotonic()
        self._last_step = 0
        self._weight_decays: list[float] = []
        self._penalty: Penalty | None = None
        self._resume_files: ResumeFiles | None = None
        self._garbage = StepGarbage()
        self._loader: PrefetchingLoader | None = None
        self._pace = PaceOfRanks(ranks)
        self._forward_clock = ForwardClock(ranks.device)

    def get_train_dataloader(self) -> PrefetchingLoader:
        """Return a loader of this rank's rows in their order; there is nothing to shard, shuffle or skip."""
        self._loader = PrefetchingLoader(
            self.train_dataset,
            self._order,
            self.data_collator,
            # The Trainer takes all micro-batches of a step at its start; those of the next one are read meanwhile.
            batches_ahead=self.args.gradient_accumulation_steps,
            device=self._ranks.device,
        )
        return self._loader

    def create_optimizer(self, *args: object, **kwargs: object) -> torch.optim.Optimizer:
        """Return the Trainer's optimizer and remember each group's weight decay, which a resume may mix up."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        self._weight_decays = [group["weight_decay"] for group in optimizer.param_groups]
        return optimizer

    def _prepare_for_training(self, *args: object, **kwargs: object) -> object:
        """Load everything, then let the stage do what must happen before the first step."""
        # DeepSpeed prints how much memory is used before and after each part of its bf16 optimizer.
        with self._loading(), contextlib.redirect_stdout(io.StringIO()):
            prepared = super()._prepare_for_training(*args, **kwargs)
            if self._resume_files is not None:
                require_fitting_states(self.model_wrapped)
                restore_weights(self.model_wrapped)
        # After the state is loaded, which is what breaks the optimizer, and before the first step.
        repair_optimizer(self.model_wrapped, self._weight_decays)
        skip_non_finite_steps(self.model_wrapped)
        leave_out_idle_calls(self.model_wrapped, self._ranks)
        if self._ranks.world_size > 1:
            self._forward_clock.attach(self.model_wrapped)
        self._hooks.on_ready()
        self._step_started = time.monotonic()
        return prepared

    def floating_point_ops(self, _inputs: object) -> int:
        """Return 0: the Trainer would walk through all modules for each micro-batch, for a number that nobody reads."""
        return 0

    def _prepare_input(self, data: object) -> object:
        """Move a tensor to the accelerator without waiting for it: the batch is in pinned memory."""
        if isinstance(data, torch.Tensor) and not data.is_floating_point():
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Run forward and backward of a micro-batch and add its share to the step's loss."""
        penalty = self._penalty
        # `sync_gradients` marks the last micro-batch of the step, whose backward pass reduces the gradients.
        if penalty is not None and penalty.before_last_backward and self.accelerator.sync_gradients:
            model.train()
            penalty.add_gradients(self.state.global_step)
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        # Stays on the accelerator: a number would have to be waited for, once for each micro-batch.
        self._step_loss += loss
        self._hooks.heartbeat()
        return loss

    def add_penalty(self, penalty: Penalty) -> None:
        """Add a penalty's gradient once an optimizer step, before clipping."""
        self._penalty = penalty
        if penalty.before_last_backward:
            return
        engine = self.model_wrapped
        update = engine.step

        def update_with_penalty(*args: object, **kwargs: object) -> object:
            # All backward passes are done, and reduced over the ranks.
            penalty.add_gradients(self.state.global_step)
            return update(*args, **kwargs)

        engine.step = update_with_penalty

    def further_backward(self, loss: torch.Tensor) -> None:
        """Run another backward pass in this step, for a loss whose gradients are summed over the ranks."""
        engine = self.model_wrapped
        # Not the last one of the step: the engine must not reduce gradients and update the weights yet.
        engine.set_gradient_accumulation_boundary(is_boundary=False)
        # DeepSpeed averages gradients over the ranks; the factor turns the average into a sum.
        engine.backward(loss * self._ranks.world_size, scale_wrt_gas=False)
        self._hooks.heartbeat()

    def _clip_grad_norm(self, _model: object) -> torch.Tensor | float | None:
        """Return the norm that DeepSpeed has clipped by, and leave it where it lies: it is read with the loss."""
        norm: torch.Tensor | float | None = self.model_wrapped.get_global_grad_norm()
        return norm

    def _get_grad_norm(self, model: object, **_: object) -> torch.Tensor | float | None:
        return self._clip_grad_norm(model)

    def _maybe_log_save_evaluate(
        self,
        _tr_loss: object,
        grad_norm: torch.Tensor | float | None,
        *_args: object,
        learning_rate: float | None = None,
        **_kwargs: object,
    ) -> None:
        """Report an optimizer step to the stage."""
        step = int(self.state.global_step)
        if step == self._last_step:  # the Trainer calls this once more at the end of the epoch
            return
        self._last_step = step
        # One reduction and one reading for all values: every rank must take the same decision, or the next collective
        # hangs. All ranks have one norm, and its mean is exact in fp64.
        loss, num_stopped, num_late, penalty, norm = self._ranks.sum_on_device(
            self._step_loss,
            float(self._hooks.stop_requested()),
            float(self._hooks.out_of_time()),
            0.0 if self._penalty is None else self._penalty.value(),
            0.0 if grad_norm is None else grad_norm,
        )
        # In the trainer's state, which a checkpoint holds, so that a resumed run counts on.
        self.state.num_input_tokens_seen += self._rows.tokens_of_step(step - 1)
        self._step_loss.zero_()
        seconds = time.monotonic() - self._step_started
        wait_seconds = 0.0 if self._loader is None else self._loader.take_wait_seconds()
        self._pace.add(wait_seconds, self._forward_clock.take_seconds(), seconds)
        reading = StepReading(
            step=step,
            loss_nats=loss / self._ranks.world_size,
            penalty_nats=None if self._penalty is None else penalty,
            gradient_norm=None if grad_norm is None else norm / self._ranks.world_size,
            learning_rate=float(learning_rate if learning_rate is not None else math.nan),
            tokens=int(self.state.num_input_tokens_seen),
            stop_requested=num_stopped > 0,
            out_of_time=num_late > 0,
            seconds=seconds,
            data_wait_seconds=wait_seconds,
            slow_rank=self._pace.slow_rank,
            rank_paces=self._pace.paces,
        )
        self._hooks.on_step(reading)
        self._garbage.after_step()
        self._forward_clock.reset()
        self._step_started = time.monotonic()

    def stage_resume_state(self, staged: StagedFiles) -> None:
        """Stage everything that an exact resume needs below `resume/`; all ranks call it.

        That is optimizer and DeepSpeed state, schedule, random states of every rank, trainer state with the curve.
        Weights that a resume has anyway are left out.
        """
        engine = self.model_wrapped
        with _libraries_quiet(), staged.capturing(RESUME_FOLDER) as folder, leaving_out_weights(engine):
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            if self._ranks.is_first:
                for script in folder.glob("zero_to_*.py"):
                    script.unlink()  # DeepSpeed copies programs there; a checkpoint is data
                self.state.save_to_json(str(folder / "trainer_state.json"))

    def resume_training(self, files: ResumeFiles | None) -> None:
        """Train to the end, from the state that `stage_resume_state` staged or from the start.

        Args:
            files: of the checkpoint; its private folder is removed. None: from the start.

        Raises:
            InfrastructureError, InputError: as `ResumeFiles.loading`.
        """
        if files is None:
            with _libraries_quiet(), self._garbage, self._closing_loader():
                self.train()
            return
        self._last_step = self._order.first_step
        self._resume_files, folder = files, files.folder / RESUME_FOLDER
        try:
            with _libraries_quiet(), self._garbage, self._closing_loader():
                if self._order.first_step == self._order.total_steps:
                    # A finished training is loaded and nothing is trained, for a reading that is still missing.
                    self._prepare_for_training(
                        self._order.total_steps, self.get_train_dataloader(), str(folder)
                    )
                else:
                    self.train(resume_from_checkpoint=str(folder))
        finally:
            files.remove()

    @contextlib.contextmanager
    def _closing_loader(self) -> Iterator[None]:
        """End the thread that reads rows however the training ends."""
        try:
            yield
        finally:
            if self._loader is not None:
                self._loader.close()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load the random states, which is the last that the Trainer reads of a checkpoint."""
        with self._loading():
            super()._load_rng_state(checkpoint)

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        if self._resume_files is None:
            yield
            return
        with self._resume_files.loading(
            mend=lambda content: with_left_out_weights(self.model_wrapped, content)
        ):
            yield


@contextlib.contextmanager
def _libraries_quiet() -> Iterator[None]:
    """Hide what the libraries report about one another.

    That is their deprecated calls, and accelerate's notice that DeepSpeed's number of accumulation steps counts, which
    is intended.
    """
    accelerate_log = logging.getLogger("accelerate.accelerator")
    level = accelerate_log.level
    accelerate_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # torch's compiler looks at the gradient of a block's input.
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
            # Of the schedule `wsd`, whose two lengths agree.
            warnings.filterwarnings("ignore", "Both num_training_steps and num_stable_steps are specified")
            yield
    finally:
        accelerate_log.setLevel(level)
