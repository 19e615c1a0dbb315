"""What fine-tuning and preference tuning share: how a try goes on, its steps, a result that a reference can name."""

from __future__ import annotations

import shutil
import time
from typing import Any

from dapt_contract.checkpoint import candidate_id
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import LoraConfig, ModelReference
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_trainer.checkpoints.inventory import StoredCheckpoint
from dapt_trainer.checkpoints.run_checkpoints import RunCheckpoints
from dapt_trainer.context import StageContext, beating
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import DivergedError, InfrastructureError, StopRequested
from dapt_trainer.training.batch_order import BatchOrder
from dapt_trainer.training.loss_curve import CURVE_FILE, Journal, curve_of
from dapt_trainer.training.step_trainer import StepReading

TuningConfig = FinetuneConfig | AlignConfig
RESULT = "model"
"""Below the try's folder."""
SAVE_EVERY_SECONDS = 900.0
"""Between two checkpoints: what a lost node costs at most, beside the time to start again."""


class TuningRun:
    """One try: where it goes on, what it shows of each step, when it saves.

    A tuning is short, so it saves by the clock (`SAVE_EVERY_SECONDS`) and when it is asked to stop, and what it saved
    is removed once its result stands. Without a key to sign with it saves nothing.

    Args:
        config: of the stage.
        context: for progress.
        ranks: this process among its peers.
        total_steps: of the run.
        what: `fine-tuning` or `preference tuning`, for sentences.
        rate_field: the field of the learning rate.
    """

    def __init__(
        self,
        config: TuningConfig,
        context: StageContext,
        ranks: Ranks,
        total_steps: int,
        *,
        what: str,
        rate_field: str,
    ) -> None:
        self._config = config
        self._context = context
        self._ranks = ranks
        self._steps = total_steps
        self._what = what
        self._rate_field = rate_field
        self._lineage: RunCheckpoints | None = None
        if context.signing_key:
            self._lineage = RunCheckpoints(config, context, ranks, keep_optimizer_states=1)
        self._trainer: Any = None
        history = self._open()
        path = context.try_folder / CURVE_FILE if ranks.is_first else None
        self.journal = Journal(path, curve_of(history))
        self.rewards: list[tuple[float, float]] = [
            (entry["rewards"][0], entry["rewards"][1]) for entry in history if "rewards" in entry
        ]
        """Accuracy and margin at each step; of preference tuning."""
        self._seconds = self.journal.seconds_before
        self._saved_at = time.monotonic()

    def _open(self) -> list[dict[str, Any]]:
        """Find the newest checkpoint; the trainer's log up to it.

        ZeRO spreads the optimizer over the ranks: another number of them starts again, which is short.
        """
        if self._lineage is None:
            return []
        self._context.progress.update(activity="looking for checkpoints", total_steps=self._steps)
        self._lineage.open()
        resumed = self._lineage.resumed
        if resumed is not None and resumed.manifest.world_size != self._ranks.world_size:
            self._lineage.forget()
        return self._lineage.log_history()

    @property
    def _resumed(self) -> StoredCheckpoint | None:
        return self._lineage.resumed if self._lineage is not None else None

    def order(self) -> BatchOrder:
        """The rows of this rank, from the first untrained step."""
        return BatchOrder(
            total_steps=self._steps,
            global_batch_size=self._config.global_batch_size,
            micro_batch_size=self._config.micro_batch_size,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            first_step=self._resumed.manifest.step if self._resumed else 0,
        )

    def is_save_due(self) -> bool:
        """Rank 0's clock decides for all."""
        late = time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS
        return self._lineage is not None and self._ranks.is_first and late

    def train(self, trainer: Any) -> None:
        """All steps that are left."""
        self._trainer = trainer
        trainer.resume_training(self._resumed.folder if self._resumed else None)

    def finish(self) -> None:
        """The result stands: what was saved on the way goes."""
        if self._lineage is not None:
            self._lineage.forget()

    def note_rewards(self, accuracy: float, margin: float) -> None:
        """Keep a step's rewards; before `after_step`, so that a checkpoint has them."""
        self.rewards.append((accuracy, margin))
        self._trainer.state.log_history.append({"rewards": [accuracy, margin]})

    def after_step(self, reading: StepReading) -> None:
        """Note a step, and save where that is due.

        Raises:
            Diverged: loss or gradient is not a number.
            StopRequested: some rank saw SIGTERM; a checkpoint was saved.
            InfrastructureError: it could not be saved.
        """
        self._seconds += reading.seconds
        point = self.journal.note(reading, self._seconds)
        self._trainer.state.log_history.append(point.model_dump())
        steps = self._steps
        self._context.progress.update(
            activity="training",
            fraction=reading.step / steps,
            step=reading.step,
            total_steps=steps,
            tokens=reading.tokens,
            tokens_per_second=self.journal.recent_tokens_per_second,
            loss_nats=reading.loss_nats,
            learning_rate=reading.learning_rate,
            gradient_norm=reading.gradient_norm,
            step_seconds=reading.seconds,
            eta_seconds=(steps - reading.step) * self.journal.step_seconds_median,
        )
        if not reading.is_finite:
            raise DivergedError(
                f"{self._what} stopped at step {reading.step} of {steps}: the loss is {reading.loss_nats:g} and the "
                f"gradient norm {reading.gradient_norm:g}; lower {self._rate_field}"
            )
        if reading.step == steps:
            return
        if self._lineage is not None and (reading.stop_requested or reading.out_of_time):
            self._save(self._lineage, reading)
        if reading.stop_requested:
            kept = "its checkpoint is complete" if self._lineage else "nothing was saved, for want of a key"
            raise StopRequested(f"{self._what}: asked to stop at step {reading.step} of {steps}; {kept}")

    def _save(self, lineage: RunCheckpoints, reading: StepReading) -> None:
        self._context.progress.update(activity=f"saving checkpoint {reading.step}")
        name = candidate_id(self._context.stage.run.attempt, reading.step)
        with beating(self._context.progress):
            lineage.save(
                reading.step, reading.tokens, self._trainer.write_resume_state, candidate=name
            )  # it holds the weights too: no candidate is made of it
            lineage.forget(but_newest=True)
        self._saved_at = time.monotonic()


def save_tuned(
    context: StageContext,
    ranks: Ranks,
    model: Any,
    tokenizer: Any,
    start: ModelReference,
    lora: LoraConfig | None,
) -> ModelReference:
    """Write adapter or weights below the try's folder and say how to find the tuned model.

    An adapter was trained on the whole recipe that the model started from, so it is merged last.

    Raises:
        InfrastructureError: the disk is full.
    """
    from dapt_trainer.modeling.save_weights import save_weights

    folder = context.try_folder / RESULT
    partial = folder.with_name(f"{RESULT}.partial")
    context.progress.update(activity="saving the tuned model")
    with beating(context.progress):
        try:
            if ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
            save_weights(model, tokenizer, partial, is_writer=ranks.is_first)
            if ranks.is_first:
                tokenizer.save_pretrained(partial)  # with the chat template, also beside an adapter
                partial.rename(folder)
        except Exception as error:  # torch and safetensors raise their own kinds for a full disk
            if ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise InfrastructureError(
                f"the tuned model could not be saved below {context.try_folder}: "
                f"{' '.join(str(error).split())[:200]}; make the volume larger, then it is tuned again"
            ) from error
        ranks.barrier()
    name = folder.relative_to(context.work).as_posix()
    if lora is None:
        return ModelReference(weights=name)
    return start.model_copy(update={"tuned": (*start.tuned, name)})


def newest_part(reference: ModelReference) -> str:
    """The folder that `save_tuned` wrote."""
    return reference.tuned[-1] if reference.tuned else reference.weights
