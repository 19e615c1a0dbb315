"""Runs fine-tuning and preference tuning: resume, train, save, and describe the tuned model.

A stage subclasses `TuningRun` with how it makes its trainer; everything else of the two stages is here.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from peft import PeftModel
from transformers import PreTrainedModel

from dapt_contract.checkpoint import FileEntry, candidate_id
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.pretrain import CurvePoint
from dapt_trainer.checkpoints.inventory import StoredCheckpoint
from dapt_trainer.checkpoints.run_checkpoints import LogEntry, RunCheckpoints
from dapt_trainer.checkpoints.save import begin, complete, failing_cleanly, write_all
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.digests import digest_of_weights, is_loaded
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import DivergedError, StopRequested
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.modeling.save_weights import stage_weights
from dapt_trainer.staged_files import StagedFiles
from dapt_trainer.training.batch_order import BatchOrder
from dapt_trainer.training.loss_curve import CURVE_FILE, LossCurve
from dapt_trainer.training.step_trainer import StepHooks, StepReading, StepTrainer

RESULT = "model"
"""Folder of the tuned model below the run's folder."""
SAVE_EVERY_SECONDS = 900.0
"""Time between two checkpoints: the most training that a lost node costs."""


@dataclass(frozen=True)
class TunedModel:
    """Describes the result of a tuning."""

    reference: ModelReference
    weights_digest: str
    """Digest of the adapter or of the weights, whichever was trained."""
    curve: tuple[CurvePoint, ...]


class TuningRun(ABC):
    """Tunes a model in one run of a stage, from the claim to the result.

    A tuning is short, so it saves by the clock (`SAVE_EVERY_SECONDS`) and at a stop request, and it removes its
    checkpoints once the result is written. Without a key to sign with it saves nothing.

    Args:
        config: of the stage.
        context: of the stage.
        ranks: that train.
        tokenizer: saved with the result.
        total_steps: optimizer steps of the run.
    """

    NAME: ClassVar[str]
    """Name of the tuning in messages."""
    LEARNING_RATE_FIELD: ClassVar[str]
    """Field of the spec that sets the learning rate."""
    LOSS_HAS_SPIKES: ClassVar[bool] = True
    """Whether a sudden rise of the loss says something about the training."""

    def __init__(
        self,
        config: FinetuneConfig | AlignConfig,
        context: StageContext,
        ranks: Ranks,
        tokenizer: Tokenizer,
        total_steps: int,
    ) -> None:
        self._config = config
        self.context = context
        self.ranks = ranks
        self.tokenizer = tokenizer
        self.total_steps = total_steps
        self._checkpoints: RunCheckpoints | None = None
        if context.signing_key:
            self._checkpoints = RunCheckpoints(config, context, ranks, keep_optimizer_states=1)
        self.log_history = self._open()
        """The trainer's log up to the resumed step."""
        path = context.try_folder / CURVE_FILE if ranks.is_first else None
        self._curve = LossCurve.of_run(
            path, self.log_history, total_steps, judges_spikes=self.LOSS_HAS_SPIKES
        )
        self._seconds = self._curve.seconds_before
        self._saved_at = time.monotonic()
        self._trainer: StepTrainer
        self._loading = contextlib.ExitStack()
        """Sends heartbeats until the state to resume from is loaded."""

    @abstractmethod
    def make_trainer(self) -> StepTrainer:
        """Load the model and return the trainer, ready to train."""

    def run(self) -> TunedModel:
        """Train all steps that are left, write the result and remove the checkpoints.

        Raises:
            InputError: as `load_model` and `accumulation_steps`.
            DivergedError: loss or gradient is not a number in too many steps, or the loss left its course.
            StopRequested: some rank received SIGTERM; a checkpoint was saved.
            InfrastructureError: a checkpoint or the result could not be written, or a newer run took over.
        """
        self.context.progress.update(activity="loading the model")
        self._trainer = self.make_trainer()
        with self._loading:
            # Until `on_ready`: the state is read before that, which may take longer than a rank may be silent.
            resumed_bytes = self._checkpoints.resumed_bytes if self._checkpoints is not None else 0
            self._loading.enter_context(self.context.keep_alive(resumed_bytes))
            self._train()
        reference, digest = self._save_result(self._trainer.model)
        # Only now: until the result is complete, its checkpoints are the only way to repeat a lost run.
        if self._checkpoints is not None:
            self._checkpoints.finish_save()
            self._checkpoints.remove()
        return TunedModel(reference, digest, tuple(self._curve.points))

    def _train(self) -> None:
        if self._checkpoints is None:
            self._trainer.resume_training(None)
            return
        with self._checkpoints.completing_at_errors():
            self._trainer.resume_training(self._checkpoints.files_to_resume())

    def _open(self) -> list[LogEntry]:
        """Find the newest checkpoint and return the trainer's log up to it."""
        if self._checkpoints is None:
            return []
        self.context.progress.update(activity="looking for checkpoints", total_steps=self.total_steps)
        self._checkpoints.open()
        resumed = self._checkpoints.resumed
        # ZeRO spreads the optimizer over the ranks. With another number of them, or in another way, a tuning starts
        # again: it is short, and converting the checkpoint is not worth it.
        is_shared_alike = self._checkpoints.distribution == self._config.distribution
        if resumed is not None and not (
            is_shared_alike and resumed.manifest.world_size == self.ranks.world_size
        ):
            self._checkpoints.remove()
        return self._checkpoints.log_history()

    @property
    def _resumed(self) -> StoredCheckpoint | None:
        return self._checkpoints.resumed if self._checkpoints is not None else None

    def order(self) -> BatchOrder:
        """Return the rows of this rank, from the first untrained step."""
        return BatchOrder(
            total_steps=self.total_steps,
            global_batch_size=self._config.global_batch_size,
            micro_batch_size=self._config.micro_batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            first_step=self._resumed.manifest.step if self._resumed else 0,
        )

    def hooks(self) -> StepHooks:
        """Return the functions that the trainer calls."""
        return StepHooks(
            on_step=self.after_step,
            stop_requested=self.context.progress.stop_requested,
            out_of_time=self._is_save_due,
            heartbeat=self.context.progress.heartbeat,
            on_ready=self._loading.close,
        )

    def _is_save_due(self) -> bool:
        # Only rank 0's clock counts: the reduction over the ranks then gives all of them the same answer.
        is_due = time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS
        return self._checkpoints is not None and self.ranks.is_first and is_due

    def after_step(self, reading: StepReading) -> None:
        """Record a step, and save where that is due.

        Raises:
            DivergedError: loss or gradient is not a number in too many steps, or the loss left its course.
            StopRequested: some rank received SIGTERM; a checkpoint was saved.
            InfrastructureError: it could not be saved.
        """
        self._seconds += reading.seconds
        point = self._curve.add(reading, self._seconds)
        self._trainer.state.log_history.append(point.model_dump())
        steps = self.total_steps
        self.context.progress.update(**self._curve.live_readings(reading, steps))
        if self._curve.watch.divergence:
            raise DivergedError(
                f"{self.NAME} stopped at step {reading.step} of {steps}: {self._curve.watch.divergence}; lower "
                f"{self.LEARNING_RATE_FIELD}"
            )
        if reading.step == steps:
            return
        if self._checkpoints is not None:
            self._checkpoints.settle_if_complete()
            if reading.stop_requested or reading.out_of_time:
                self._save(self._checkpoints, reading)
        if reading.stop_requested:
            if self._checkpoints is not None:
                self._checkpoints.finish_save()
            saved = (
                "its checkpoint is complete" if self._checkpoints else "nothing was saved, for want of a key"
            )
            raise StopRequested(f"{self.NAME}: stop requested at step {reading.step} of {steps}; {saved}")

    def _save(self, checkpoints: RunCheckpoints, reading: StepReading) -> None:
        self.context.progress.update(activity=f"saving checkpoint {reading.step}")
        name = candidate_id(self.context.stage.run.attempt, reading.step)
        with keep_alive(self.context.progress):
            checkpoints.finish_save()
            checkpoints.remove(keep_newest=True)
            # A tuning's checkpoint is no candidate: it is resumed from and nothing else.
            checkpoints.begin_save(
                reading.step, reading.tokens, self._trainer.stage_resume_state, candidate=name
            )
        self._saved_at = time.monotonic()

    def _save_result(self, model: PreTrainedModel | PeftModel) -> tuple[ModelReference, str]:
        """Write adapter or weights below the run's folder; return how to find the tuned model, and their digest."""
        folder = self.context.try_folder / RESULT
        self.context.progress.update(activity="saving the tuned model")
        with keep_alive(self.context.progress):
            files = self._write_result(model, folder)
        digest = digest_of_weights({file.path: file.sha256 for file in files if is_loaded(file.path)})
        name = folder.relative_to(self.context.work).as_posix()
        if self._config.lora is None:
            return ModelReference(weights=name, origin=self._config.model.origin), digest
        # The adapter was trained on the whole recipe that the model started from, so it is merged last.
        return self._config.model.with_tuned(name), digest

    def _write_result(self, model: PreTrainedModel | PeftModel, folder: Path) -> tuple[FileEntry, ...]:
        """Write the result by all ranks, and return its files."""
        staged = StagedFiles(self.context.scratch / f"staged-{self.ranks.rank}")
        last_complete = "its checkpoints are kept"
        with failing_cleanly(folder, last_complete):
            if self.ranks.is_first:
                begin(folder)
            stage_weights(model, self.tokenizer, staged, self.ranks)
            if self.ranks.is_first:
                with staged.capturing() as texts:
                    self.tokenizer.save_pretrained(
                        texts
                    )  # with the chat template, in an adapter's folder too
        self.ranks.barrier()  # no rank may write before the folder exists
        files = write_all(staged, folder, self.ranks, last_complete=last_complete)
        with failing_cleanly(folder, last_complete):
            if self.ranks.is_first:
                complete(folder)
        self.ranks.barrier()
        return files
