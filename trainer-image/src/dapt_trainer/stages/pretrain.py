"""pretrain: continued pre-training with exact resume, both perplexities at each checkpoint, and the stop rule.

Order of things: claim the lineage; find the newest complete checkpoint; load the model; train; at each checkpoint step
save first, measure after, then let the stop rule judge. What was saved is made durable and signed while the model is
measured. A save without readings is already good for resuming, so a stop in the middle of an evaluation costs that
evaluation and no step.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from dapt_contract.checkpoint import candidate_id
from dapt_contract.measure import SidePerplexity
from dapt_contract.stages.pretrain import EndedBy, PretrainConfig, PretrainFacts, PretrainReport
from dapt_contract.stop_rule import StopVerdict, judge_readings
from dapt_trainer.checkpoints.run_checkpoints import RunCheckpoints
from dapt_trainer.context import StageContext, beating
from dapt_trainer.distributed import Ranks, join_ranks
from dapt_trainer.errors import DivergedError, ForgettingLimitReached, InputError, StageError, StopRequested
from dapt_trainer.training.loss_curve import CURVE_FILE, STALL, Journal, curve_of, penalties_of, stall_of


def run(config: PretrainConfig, context: StageContext) -> PretrainReport:
    """Train to the last step, or to the budget's end.

    Raises:
        InputError: model, shards or batch sizes do not fit.
        ForgettingLimitReached: the stop rule ended the run; the error carries facts and report.
        Diverged: loss, gradient or a perplexity is not a number; carries facts and report.
        StopRequested: SIGTERM; a checkpoint was saved.
        InfrastructureError: a save failed, or a newer try took over.
    """
    if not context.signing_key:
        raise InputError("pretrain needs the key that signs checkpoints, and none was mounted")
    ranks = join_ranks(context.rank, context.local_rank, context.world_size)
    return PretrainRun(config, context, ranks).run()


class PretrainRun:
    """One try of one attempt."""

    def __init__(self, config: PretrainConfig, context: StageContext, ranks: Ranks) -> None:
        self.config = config
        self.context = context
        self.ranks = ranks
        self.started = time.monotonic()
        self.lineage = RunCheckpoints(
            config, context, ranks, keep_optimizer_states=config.keep_optimizer_states
        )
        self.journal: Journal
        self.trainer: Any
        self.setup: Any = None
        self.model: Any
        self.tokenizer: Any
        self.rows: Any
        self.fisher: Any = None
        self.checkpoint_seconds = 0.0
        self.stall_seconds = 0.0
        self.ended_by: EndedBy = "Completed"
        self.end_message = ""
        self.saved_step = 0
        self.owes_reading = False

    def run(self) -> PretrainReport:
        """From the claim to the report."""
        from dapt_trainer.training.regularization.pretrain_hooks import fisher_of_run
        from dapt_trainer.training.training_rows import open_rows

        self.context.progress.update(activity="looking for checkpoints", total_steps=self.config.total_steps)
        self.lineage.open()
        resumed = self.lineage.resumed
        history = self.lineage.log_history()
        earlier = curve_of(history)
        self.stall_seconds = stall_of(history)
        curve_path = self.context.try_folder / CURVE_FILE if self.ranks.is_first else None
        self.journal = Journal(curve_path, earlier)
        self.context.progress.update(
            activity="loading model and data", checkpoints=self.lineage.checkpoint_facts()
        )
        self.rows = open_rows(self.context.work, self.config)
        self.saved_step = resumed.manifest.step if resumed else 0
        self.owes_reading = (
            resumed is not None
            and resumed.manifest.domain is None
            and self._is_checkpoint_step(self.saved_step)
        )
        if resumed and not self.owes_reading and self._has_ended():
            return self._report()
        self.fisher = fisher_of_run(self.config, self.context, self.ranks)
        self._load_model()
        self.trainer = self._make_trainer()
        self.trainer.on_ready = self._when_loaded
        self.trainer.resume_training(self._resume_folder())
        return self._report()

    def _has_ended(self) -> bool:
        """Whether an earlier try came to an end whose report it could not write any more; a stop is raised again."""
        if self.saved_step == self.config.total_steps:
            self._judge(self.saved_step)
            return True
        if self._is_checkpoint_step(self.saved_step):
            self._judge(self.saved_step)
        if self._time_is_up(self.journal.seconds_before) and self.lineage.resumed_is_measured:
            self._note_end_of_time(self.saved_step)
            return True
        return False

    def _must_convert(self) -> bool:
        """Whether the optimizer's shards were written by another number of ranks."""
        resumed = self.lineage.resumed
        return (
            resumed is not None
            and self.config.distribution.zero_stage > 0
            and resumed.manifest.world_size != self.ranks.world_size
        )

    def _resume_folder(self) -> Path | None:
        """Where the Trainer finds the resumed state."""
        from dapt_trainer.checkpoints.change_world_size import convert_to_universal

        resumed = self.lineage.resumed
        if resumed is None or not self._must_convert():
            return resumed.folder if resumed else None
        converted = self.context.try_folder / "universal"
        if self.ranks.is_first:
            self.context.progress.update(
                activity=f"converting a checkpoint of {resumed.manifest.world_size} ranks for {self.ranks.world_size}"
            )
        with beating(self.context.progress):
            if self.ranks.is_first:
                convert_to_universal(resumed.folder, converted)
            self.ranks.barrier()
        return converted

    def _load_model(self) -> None:
        from dapt_trainer.modeling.flops import flops_per_token
        from dapt_trainer.modeling.model_folder import load_tokenizer
        from dapt_trainer.training.setup import set_up

        self.tokenizer = load_tokenizer(self.context.work, self.config.model.weights)
        self.setup = set_up(self.config, self.context, self.ranks, load_universal=self._must_convert())
        self.model = self.setup.model
        self.context.progress.update(flops_per_token=flops_per_token(self.model))

    def _make_trainer(self) -> Any:
        from transformers.trainer_callback import PrinterCallback

        from dapt_trainer.training.batch_order import BatchOrder
        from dapt_trainer.training.step_trainer import StepTrainer

        config, ranks = self.config, self.ranks
        resumed = self.lineage.resumed
        order = BatchOrder(
            total_steps=config.total_steps,
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
            first_step=resumed.manifest.step if resumed else 0,
        )
        trainer = StepTrainer(
            model=self.model,
            args=self.setup.arguments,
            rows=self.rows.dataset,
            order=order,
            ranks=ranks,
            tokens_of_step=self.rows.tokens_of_step,
            stop_requested=self.context.progress.stop_requested,
            out_of_time=self._out_of_time,
            heartbeat=self.context.progress.heartbeat,
            on_step=self._after_step,
            data_collator=self.setup.attention.collate,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    # ---- at the end of each step ----

    def _after_step(self, reading: Any) -> None:
        config = self.config
        point = self.journal.note(reading, self._seconds())
        self.trainer.state.log_history.append(point.model_dump())
        self._show(reading)
        if not reading.is_finite:
            raise self._ended(
                DivergedError,
                "Diverged",
                f"at step {reading.step} of {config.total_steps}: the loss is {reading.loss_nats:g} and the gradient "
                f"norm {reading.gradient_norm:g} (learning rate {reading.learning_rate:.3g}); lower "
                "pretraining.optimizer.learningRate",
            )
        wanted = self._is_checkpoint_step(reading.step)
        if not (wanted or reading.stop_requested or reading.out_of_time):
            return
        self._save(reading.step, reading.tokens)
        if reading.stop_requested:
            with beating(self.context.progress):
                self.lineage.settle()
            raise StopRequested(
                f"asked to stop at step {reading.step} of {config.total_steps}; its checkpoint is complete"
            )
        self._measure(reading.step)
        if reading.out_of_time and reading.step < config.total_steps:
            self._note_end_of_time(reading.step)
            self.trainer.control.should_training_stop = True

    def _show(self, reading: Any) -> None:
        config = self.config
        steps_left = config.total_steps - reading.step
        checkpoints_left = sum(1 for step in config.checkpoint_steps if step >= reading.step)
        eta = steps_left * self.journal.step_seconds_median + checkpoints_left * self.checkpoint_seconds
        self.context.progress.update(
            activity="training",
            fraction=reading.step / config.total_steps,
            step=reading.step,
            total_steps=config.total_steps,
            tokens=reading.tokens,
            tokens_per_second=self.journal.recent_tokens_per_second,
            loss_nats=reading.loss_nats,
            learning_rate=reading.learning_rate,
            gradient_norm=reading.gradient_norm,
            step_seconds=reading.seconds,
            eta_seconds=eta,
        )

    # ---- checkpoints ----

    def _is_checkpoint_step(self, step: int) -> bool:
        return step in self.config.checkpoint_steps or step == self.config.total_steps

    def _save(self, step: int, tokens: int) -> None:
        self.context.progress.update(activity=f"saving checkpoint {step}")
        started = time.monotonic()

        def write(folder: Path) -> None:
            from dapt_trainer.modeling.save_weights import save_weights

            save_weights(self.model, self.tokenizer, folder, is_writer=self.ranks.is_first)
            self.trainer.write_resume_state(folder)

        # A try that goes on from here knows what the checkpoints before this one took.
        self.trainer.state.log_history.append({"step": step, STALL: self.stall_seconds})
        with beating(self.context.progress):
            self.lineage.begin(step, tokens, write, candidate=candidate_id(self._attempt, step))
        self.saved_step = step
        self.checkpoint_seconds = time.monotonic() - started
        self.stall_seconds += self.checkpoint_seconds
        self.context.progress.update(checkpoint_seconds=self.checkpoint_seconds)

    def _when_loaded(self) -> None:
        """The state is in memory; nothing is trained yet."""
        from dapt_trainer.training.regularization.pretrain_hooks import hold_back

        self.ranks.barrier()
        if self.saved_step < self.config.total_steps:
            hold_back(self.trainer, self.config, self.context, self.ranks, self.fisher)
        if self.ranks.is_first:
            shutil.rmtree(self.context.try_folder / "universal", ignore_errors=True)
        if self.owes_reading:
            self._measure(self.saved_step)

    def _measure(self, step: int) -> None:
        """Both perplexities of the checkpoint just saved, into its manifest; then the stop rule."""
        from dapt_trainer.evaluation.perplexity import side_perplexity
        from dapt_trainer.modeling.attention import unpacked_attention

        started = time.monotonic()

        def measure(side: Any) -> SidePerplexity:
            self.context.progress.update(activity=f"evaluating {side} held-out text at step {step}")
            return side_perplexity(
                self.trainer.model,
                self.context.work,
                side,
                context_length_tokens=self.config.evaluation_context_length_tokens,
                end_of_text_id=self.rows.end_of_text_id,
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                progress=self.context.progress,
                tokenizer=self.tokenizer,
            )

        try:
            with unpacked_attention(self.trainer.model):
                domain, general = measure("domain"), measure("general")
        except BaseException:
            self.lineage.finish_writing()
            raise
        with beating(self.context.progress):
            self.lineage.settle()
        self.lineage.add_readings(step, domain, general)
        seconds = time.monotonic() - started
        self.checkpoint_seconds += seconds
        self.stall_seconds += seconds
        self.context.progress.update(
            domain_perplexity=domain.both.perplexity,
            general_perplexity=general.both.perplexity,
            checkpoints=self.lineage.checkpoint_facts(),
        )
        self._judge(step)

    def _judge(self, step: int) -> None:
        """The stop rule over all readings so far.

        Raises:
            ForgettingLimitReached, Diverged: it says so.
        """
        decision = judge_readings(
            self.config.stop_rule, self.config.base_general_perplexity, self.lineage.general_perplexities()
        )
        where = f"at step {step} of {self.config.total_steps}: {decision.message}"
        if decision.verdict is StopVerdict.DIVERGED:
            raise self._ended(DivergedError, "Diverged", where)
        if decision.verdict is StopVerdict.FORGETTING_LIMIT:
            raise self._ended(ForgettingLimitReached, "ForgettingLimit", where)

    # ---- ends ----

    @property
    def _attempt(self) -> int:
        return self.context.stage.run.attempt

    def _seconds(self) -> float:
        return self.journal.seconds_before + time.monotonic() - self.started

    def _out_of_time(self) -> bool:
        return self.ranks.is_first and self._time_is_up(self._seconds())

    def _time_is_up(self, seconds: float) -> bool:
        limit = self.config.max_train_seconds
        return limit is not None and seconds >= limit

    def _note_end_of_time(self, step: int) -> None:
        self.ended_by = "BudgetReached"
        self.end_message = (
            f"pretraining's share of the GPU-hour limit ({self.config.max_train_seconds:g} s) was used up at step "
            f"{step} of {self.config.total_steps}"
        )

    def _ended(self, kind: type[StageError], ended_by: EndedBy, message: str) -> StageError:
        self.ended_by, self.end_message = ended_by, message
        report = self._report()
        error = kind(f"pretraining stopped {message}", facts=report.facts)
        error.report = report  # the worker writes it in spite of the failure
        return error

    def _report(self) -> PretrainReport:
        points = self.journal.points
        steps = points[-1].step if points else 0
        facts = PretrainFacts(
            ended_by=self.ended_by,
            message=self.end_message,
            steps=steps,
            tokens=points[-1].tokens if points else 0,
            checkpoints=self.lineage.checkpoint_facts(),
            tokens_per_second=self.journal.tokens_per_second,
            step_seconds_median=self.journal.step_seconds_median,
            peak_memory_bytes=self.lineage.peak_memory_bytes(),
        )
        totals = self.rows.totals(steps)
        return PretrainReport(
            facts=facts,
            curve=tuple(points),
            tokens_by_source=tuple(totals.tokens_by_source.items()),
            epochs_by_source=tuple(totals.epochs_by_source.items()),
            realised_replay_fraction=totals.replay_fraction,
            penalties=penalties_of(points),
            stall_seconds=round(self.stall_seconds, 3),
            skipped_checkpoints=self.lineage.skipped,
            attention=self.setup.attention.text if self.setup else "",
            kernels=self.setup.kernels.text if self.setup else "",
        )
