"""Continues pre-training with exact resume, both perplexities at each checkpoint, and the stop rule.

At each checkpoint step the run saves first, then measures, then applies the stop rule. A save is a copy in host memory,
which is written, made durable and signed while the model is measured and trained further. Without readings it is good
for resuming already, so a stop in the middle of an evaluation costs that evaluation and no step.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from dapt_contract.checkpoint import candidate_id
from dapt_contract.measure import Side, SidePerplexity
from dapt_contract.stages.pretrain import EndedBy, PretrainConfig, PretrainFacts, PretrainReport
from dapt_contract.stop_rule import StopVerdict, judge_readings
from dapt_contract.untrusted.folders import remove_folder
from dapt_trainer.checkpoints.change_world_size import convert_to_universal, must_convert
from dapt_trainer.checkpoints.inventory import StoredCheckpoint
from dapt_trainer.checkpoints.resume_files import ResumeFiles
from dapt_trainer.checkpoints.run_checkpoints import RunCheckpoints
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import DivergedError, ForgettingLimitReached, InputError, StageEnded, StopRequested
from dapt_trainer.evaluation.earlier_results import base_losses
from dapt_trainer.evaluation.perplexity import HeldOutScoring, side_perplexity
from dapt_trainer.modeling.attention import unpacked_attention
from dapt_trainer.modeling.flops import flops_per_token
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.modeling.save_weights import stage_weights
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.preflight.check import training_ranks
from dapt_trainer.staged_files import StagedFiles
from dapt_trainer.training.batch_order import BatchOrder
from dapt_trainer.training.loss_curve import CURVE_FILE, STALL, LossCurve, penalties_of, stall_of
from dapt_trainer.training.pretrain_penalty import attach_penalty, prepare_fisher
from dapt_trainer.training.regularization.fisher_store import StoredFisher
from dapt_trainer.training.setup import Setup, set_up
from dapt_trainer.training.step_trainer import StepHooks, StepReading, StepRows, StepTrainer
from dapt_trainer.training.training_rows import TrainingRows, open_rows


def run(config: PretrainConfig, context: StageContext) -> PretrainReport:
    """Train to the last step, or to the end of the budget.

    Raises:
        InputError: model, shards or batch sizes are missing or do not match.
        ForgettingLimitReached: the stop rule ended the run; it carries facts and report.
        DivergedError: the loss left its course, or is not a number too often; it carries facts and report.
        StopRequested: SIGTERM; a checkpoint was saved.
        InfrastructureError: a save failed, or a newer run took over.
    """
    if not context.signing_key:
        raise InputError("pretrain needs the key that signs checkpoints, and none was mounted")
    return PretrainRun(config, context, training_ranks(context)).run()


class PretrainRun:
    """Runs one attempt once, from the claim to the report."""

    def __init__(self, config: PretrainConfig, context: StageContext, ranks: Ranks) -> None:
        self.config = config
        self.context = context
        self.ranks = ranks
        self.progress = context.progress
        self.started = time.monotonic()
        self.checkpoints = RunCheckpoints(
            config, context, ranks, keep_optimizer_states=config.keep_optimizer_states
        )
        self.saved_step = 0
        """Step of the newest checkpoint; 0 before the first."""
        self.checkpoint_seconds = 0.0
        """Duration of the last save and its evaluation."""
        self.stall_seconds = 0.0
        """Time that all saves and evaluations took, in earlier runs too."""
        self.ended_by: EndedBy = "Completed"
        self.end_message = ""
        # `run` sets these in the order of its steps.
        self.curve: LossCurve
        self.rows: TrainingRows
        self.fisher: StoredFisher | None
        self.tokenizer: Tokenizer
        self.setup: Setup | None = None
        self._loading = contextlib.ExitStack()
        """Sends heartbeats until the state to resume from is loaded."""
        self.model: PreTrainedModel | PeftModel
        self.trainer: StepTrainer

    def run(self) -> PretrainReport:
        """Claim the lineage, resume or start, train, and return the report."""
        # 1. Claim the lineage before its checkpoints are read: a predecessor that still runs may finish a save later,
        # and by the claim every reader knows to ignore it.
        self.progress.update(activity="looking for checkpoints", total_steps=self.config.total_steps)
        self.checkpoints.open()
        # The optimizer's state is read in the way in which it was written.
        self.config = self.config.with_distribution(self.checkpoints.distribution)

        # 2. Restore the curve before anything can end the run: the report of every end contains it.
        self._restore_curve()

        # 3. Open the data before the model: damaged shards are found in seconds, a model takes minutes to load.
        self.progress.update(
            activity="loading model and data", checkpoints=self.checkpoints.checkpoint_facts()
        )
        self.rows = open_rows(self.context.work, self.config, self.ranks, self.progress.heartbeat)
        self.base_losses = base_losses(self.context.work, self.config.base_losses_digest)

        # 4. An earlier run may have ended training and been killed before its report. Then nothing is loaded.
        if self._has_ended():
            return self._report()

        # 5. The Fisher information needs the base model, which must be out of memory before the trained one is loaded.
        self.fisher = prepare_fisher(self.config, self.context, self.ranks)

        # 6. Arguments before model, model before trainer: see `set_up`.
        self.setup = self._load_model()
        self.model = self.setup.model
        self.trainer = self._make_trainer(self.setup)

        # 7. Train from the resumed step. `_on_ready` runs in between: once the state is loaded, before the first step.
        with self._loading, self.checkpoints.completing_at_errors():
            # Converting and loading may take longer than a rank may be silent.
            self._loading.enter_context(self.context.keep_alive(self.checkpoints.resumed_bytes))
            self.trainer.resume_training(self._files_to_resume())
        return self._report()

    # ---- before training ----

    def _restore_curve(self) -> None:
        history = self.checkpoints.log_history()
        self.stall_seconds = stall_of(history)
        path = self.context.try_folder / CURVE_FILE if self.ranks.is_first else None
        self.curve = LossCurve.of_run(path, history, self.config.total_steps)
        self.saved_step = self._resumed.manifest.step if self._resumed else 0

    @property
    def _resumed(self) -> StoredCheckpoint | None:
        return self.checkpoints.resumed

    @property
    def _lacks_reading(self) -> bool:
        """Return whether the resumed checkpoint is a candidate that was saved and not measured."""
        return (
            self._resumed is not None
            and self._resumed.manifest.domain is None
            and self._is_checkpoint_step(self._resumed.manifest.step)
        )

    def _has_ended(self) -> bool:
        """Return whether an earlier run ended training and could not write its report.

        Raises:
            ForgettingLimitReached, DivergedError: it was ended by the stop rule, which decides the same again.
        """
        if self._resumed is None or self._lacks_reading:
            return False
        if self.saved_step == self.config.total_steps:
            self._apply_stop_rule(self.saved_step)
            return True
        if self._is_checkpoint_step(self.saved_step):
            self._apply_stop_rule(self.saved_step)
        if self._time_is_up(self.curve.seconds_before) and self.checkpoints.resumed_is_measured:
            self._note_end_of_time(self.saved_step)
            return True
        return False

    def _must_convert(self) -> bool:
        stage = self.config.distribution.zero_stage
        return must_convert(self._resumed, world_size=self.ranks.world_size, zero_stage=stage)

    def _files_to_resume(self) -> ResumeFiles | None:
        """Return the state to resume from, converted if necessary; None for a start."""
        files = self.checkpoints.files_to_resume()
        if files is None or self._resumed is None or not self._must_convert():
            return files
        old, new = self._resumed.manifest.world_size, self.ranks.world_size
        self.progress.update(activity=f"converting a checkpoint of {old} ranks for {new}")
        stage = self.config.distribution.zero_stage
        converted = convert_to_universal(files, self._converted_folder, self.ranks, zero_stage=stage)
        return ResumeFiles(self._converted_folder, converted, files.folder)

    @property
    def _converted_folder(self) -> Path:
        return self.context.try_folder / "universal"

    def _load_model(self) -> Setup:
        self.tokenizer = load_tokenizer(self.context.work, self.config.model.weights)
        setup = set_up(
            self.config,
            self.context,
            self.ranks,
            total_steps=self.config.total_steps,
            load_universal=self._must_convert(),
        )
        self.progress.update(flops_per_token=flops_per_token(setup.model))
        return setup

    def _make_trainer(self, setup: Setup) -> StepTrainer:
        config, ranks = self.config, self.ranks
        order = BatchOrder(
            total_steps=config.total_steps,
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            rank=ranks.rank // config.distribution.sequence_parallel,
            world_size=ranks.world_size // config.distribution.sequence_parallel,
            first_step=self.saved_step,
        )
        return StepTrainer(
            model=setup.model,
            args=setup.arguments,
            rows=StepRows(self.rows.dataset, order, self.rows.tokens_of_step),
            ranks=ranks,
            hooks=StepHooks(
                on_step=self._after_step,
                stop_requested=self.progress.stop_requested,
                out_of_time=self._is_out_of_time,
                heartbeat=self.progress.heartbeat,
                on_ready=self._on_ready,
            ),
            collate=setup.attention.collate,
        )

    def _on_ready(self) -> None:
        """Do what needs the loaded state and must happen before the first step."""
        self._loading.close()
        self.ranks.barrier()
        # After the engine has divided the weights among the ranks: the penalty follows that division.
        if self.saved_step < self.config.total_steps:
            attach_penalty(self.trainer, self.config, self.context, self.ranks, self.fisher)
        if self.ranks.is_first:
            remove_folder(self._converted_folder)
        # The resumed weights are loaded and not trained further: the only moment for a reading that is missing.
        if self._lacks_reading:
            self._measure(self.saved_step)

    # ---- at the end of each step ----

    def _after_step(self, reading: StepReading) -> None:
        config = self.config
        point = self.curve.add(reading, self._seconds())
        self.trainer.state.log_history.append(point.model_dump())
        self._show(reading)
        if self.checkpoints.settle_if_complete():
            self.progress.update(checkpoints=self.checkpoints.checkpoint_facts())
        if divergence := self.curve.watch.divergence:
            message = f"at step {reading.step} of {config.total_steps}: {divergence}"
            message += "; lower pretraining.optimizer.learningRate"
            raise self._ended(DivergedError, "Diverged", message)
        is_checkpoint = self._is_checkpoint_step(reading.step)
        if not (is_checkpoint or reading.stop_requested or reading.out_of_time):
            return
        self._save(reading.step, reading.tokens)
        # At a stop request the grace period may be too short for an evaluation; the next run measures what was saved.
        if reading.stop_requested:
            self.checkpoints.finish_save()
            raise StopRequested(
                f"stop requested at step {reading.step} of {config.total_steps}; its checkpoint is complete"
            )
        self._measure(reading.step)
        if reading.out_of_time and reading.step < config.total_steps:
            self._note_end_of_time(reading.step)
            self.trainer.control.should_training_stop = True

    def _show(self, reading: StepReading) -> None:
        checkpoints_left = sum(1 for step in self.config.checkpoint_steps if step >= reading.step)
        pauses_seconds = checkpoints_left * self.checkpoint_seconds
        self.progress.update(**self.curve.live_readings(reading, self.config.total_steps, pauses_seconds))

    # ---- checkpoints ----

    def _is_checkpoint_step(self, step: int) -> bool:
        return step in self.config.checkpoint_steps or step == self.config.total_steps

    def _save(self, step: int, tokens: int) -> None:
        """Copy a checkpoint to host memory; it is written and completed in the background."""
        self.progress.update(activity=f"saving checkpoint {step}")
        started = time.monotonic()

        def stage(staged: StagedFiles) -> None:
            stage_weights(self.model, self.tokenizer, staged, self.ranks)
            self.trainer.stage_resume_state(staged)

        # Into the state before it is saved: a run that resumes from it adds to the time of the checkpoints before it.
        self.trainer.state.log_history.append({"step": step, STALL: self.stall_seconds})
        with keep_alive(self.progress):
            candidate = candidate_id(self.context.stage.run.attempt, step)
            self.checkpoints.begin_save(step, tokens, stage, candidate=candidate)
        self.saved_step = step
        self.checkpoint_seconds = time.monotonic() - started
        self.stall_seconds += self.checkpoint_seconds
        self.progress.update(checkpoint_seconds=self.checkpoint_seconds)

    def _measure(self, step: int) -> None:
        """Measure both perplexities of the newest checkpoint, add them to its manifest and apply the stop rule."""
        started = time.monotonic()
        with unpacked_attention(self.trainer.model):
            domain, general = self._perplexity("domain", step), self._perplexity("general", step)
        self.checkpoints.add_readings(domain, general)
        self.checkpoints.settle_if_complete()
        seconds = time.monotonic() - started
        self.checkpoint_seconds += seconds
        self.stall_seconds += seconds
        self.progress.update(
            domain_perplexity=domain.both.perplexity,
            general_perplexity=general.both.perplexity,
            checkpoints=self.checkpoints.checkpoint_facts(),
        )
        # Last: what ends the run reports the checkpoint that was just measured.
        self._apply_stop_rule(step)

    def _perplexity(self, side: Side, step: int) -> SidePerplexity:
        self.progress.update(activity=f"evaluating {side} held-out text at step {step}")
        return side_perplexity(
            self.trainer.model,
            self.context.work,
            side,
            HeldOutScoring.of_ranks(
                self.ranks, self.config.evaluation_context_length_tokens, self.progress, self.rows.manifest
            ),
            tokenizer=self.tokenizer,
            base=self.base_losses,
        )

    def _apply_stop_rule(self, step: int) -> None:
        """Apply the stop rule to all readings so far.

        Raises:
            ForgettingLimitReached, DivergedError: the rule ends the run.
        """
        decision = judge_readings(
            self.config.stop_rule,
            self.config.base_general_perplexity,
            self.checkpoints.general_perplexities(),
        )
        message = f"at step {step} of {self.config.total_steps}: {decision.message}"
        if decision.verdict is StopVerdict.DIVERGED:
            raise self._ended(DivergedError, "Diverged", message)
        if decision.verdict is StopVerdict.FORGETTING_LIMIT:
            raise self._ended(ForgettingLimitReached, "ForgettingLimit", message)

    # ---- ends ----

    def _seconds(self) -> float:
        """Return the training time of all runs of this attempt."""
        return self.curve.seconds_before + time.monotonic() - self.started

    def _is_out_of_time(self) -> bool:
        # Only rank 0's clock counts: the reduction over the ranks then gives all of them the same answer.
        return self.ranks.is_first and self._time_is_up(self._seconds())

    def _time_is_up(self, seconds: float) -> bool:
        return self.config.max_train_seconds is not None and seconds >= self.config.max_train_seconds

    def _note_end_of_time(self, step: int) -> None:
        self.ended_by = "BudgetReached"
        self.end_message = (
            f"pretraining's share of the GPU-hour limit ({self.config.max_train_seconds:g} s) was used up at step "
            f"{step} of {self.config.total_steps}"
        )

    def _ended(self, kind: type[StageEnded], ended_by: EndedBy, message: str) -> StageEnded:
        """Return the exception that ends the run; it carries the report, which the worker writes all the same."""
        self.ended_by, self.end_message = ended_by, message
        report = self._report()
        return kind(f"pretraining stopped {message}", facts=report.facts, report=report)

    def _report(self) -> PretrainReport:
        # What is still being written counts: the report lists it, and the next stage reads it.
        self.checkpoints.finish_save()
        points = self.curve.points
        steps = points[-1].step if points else 0
        facts = PretrainFacts(
            ended_by=self.ended_by,
            message=self.end_message,
            steps=steps,
            tokens=points[-1].tokens if points else 0,
            checkpoints=self.checkpoints.checkpoint_facts(),
            tokens_per_second=self.curve.tokens_per_second,
            step_seconds_median=self.curve.step_seconds_median,
            peak_memory_bytes=self.checkpoints.peak_memory_bytes(),
            skipped_steps=self.curve.watch.skipped_steps,
            loss_spikes=self.curve.watch.loss_spikes,
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
            skipped_checkpoints=self.checkpoints.skipped,
            attention=self.setup.attention.text if self.setup else "",
            kernels=self.setup.kernels.text if self.setup else "",
        )
