"""Aligns a model by direct preference optimization (Rafailov et al. 2023); the reference is the model at the start.

Each run computes the reference's likelihoods again, from the model that the first run started from, and then resumes
from the newest checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from statistics import fmean

from dapt_contract.stages.align import AlignConfig, AlignFacts, AlignReport
from dapt_trainer.checkpoints.run_checkpoints import LogEntry
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.flops import flops_per_token
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.preflight.check import training_ranks
from dapt_trainer.training.setup import load_start
from dapt_trainer.training.step_trainer import StepReading
from dapt_trainer.training.tuning.chat import with_template
from dapt_trainer.training.tuning.preference_pairs import ShuffledPairs, tokenize_pairs
from dapt_trainer.training.tuning.preference_trainer import PairRows, PreferenceTrainer, preference_arguments
from dapt_trainer.training.tuning.tuning_run import TuningRun

logger = logging.getLogger(__name__)
_REWARDS = "rewards"
"""Key of the trainer's log for accuracy and margin of a step."""


def run(config: AlignConfig, context: StageContext) -> AlignReport:
    """Tune the referenced model on preference pairs.

    Raises:
        InputError: no pair can be learned from, or batch sizes do not divide.
        DivergedError: loss or gradient is not a number.
        StopRequested: SIGTERM; a checkpoint was saved.
        InfrastructureError: a checkpoint or the result could not be written, or a newer run took over.
    """
    ranks = training_ranks(context)
    context.progress.update(activity="tokenizing preference pairs")
    tokenizer = with_template(load_tokenizer(context.work, config.model.weights))
    pairs = tokenize_pairs(
        tokenizer,
        context.work / config.data_folder,
        sequence_length_tokens=config.sequence_length_tokens,
        expected_digest=config.data_digest,
        progress=context.progress,
    )
    steps = max(1, math.ceil(config.epochs * len(pairs.kept) / config.global_batch_size))
    rows = ShuffledPairs(pairs.kept, rows=steps * config.global_batch_size, seed=config.seed)
    if ranks.is_first and (pairs.cut or pairs.dropped or pairs.equal):
        logger.warning(
            "answers of %d pairs are cut at %d tokens, %d more have no space for them and are left out, and %d whose "
            "answers are equal up to there",
            pairs.cut,
            config.sequence_length_tokens,
            pairs.dropped,
            pairs.equal,
        )
    alignment = AlignRun(config, context, ranks, tokenizer, rows, steps)
    tuned = alignment.run()
    last = alignment.rewards[-math.ceil(len(alignment.rewards) / 10) :]
    facts = AlignFacts(
        model=tuned.reference,
        weights_digest=tuned.weights_digest,
        steps=len(tuned.curve),
        pairs=len(pairs.kept),
        first_loss_nats=tuned.curve[0].loss_nats,
        last_loss_nats=tuned.curve[-1].loss_nats,
        reward_accuracy=fmean(accuracy for accuracy, _ in last),
        reward_margin=fmean(margin for _, margin in last),
        cut_pairs=pairs.cut,
        dropped_pairs=pairs.dropped,
        equal_pairs=pairs.equal,
    )
    return AlignReport(facts=facts, curve=tuned.curve)


class AlignRun(TuningRun):
    """Tunes on preference pairs and keeps the implicit rewards of each step."""

    NAME = "preference tuning"
    LEARNING_RATE_FIELD = "preference.optimizer.learningRate"
    # One pair that is not learned yet has a loss many times that of the others.
    LOSS_HAS_SPIKES = False

    def __init__(
        self,
        config: AlignConfig,
        context: StageContext,
        ranks: Ranks,
        tokenizer: Tokenizer,
        rows: ShuffledPairs,
        total_steps: int,
    ) -> None:
        super().__init__(config, context, ranks, tokenizer, total_steps)
        self.config = config
        self._rows = rows
        self.rewards = rewards_of(self.log_history)
        """Accuracy and margin of each step."""
        self._trainer: PreferenceTrainer

    def make_trainer(self) -> PreferenceTrainer:
        """Load the model, compute the reference's log-probabilities, and return the trainer."""
        config, context = self.config, self.context
        arguments = preference_arguments(config, context, self.ranks, total_steps=self.total_steps)
        with keep_alive(context.progress):  # loading a model is one long call
            model = load_start(config, context, self.ranks, arguments)
            if config.lora is not None:
                model = with_lora(model, config.lora, seed=config.seed)
        context.progress.update(flops_per_token=flops_per_token(model))
        trainer = PreferenceTrainer(
            model=model,
            args=arguments,
            rows=PairRows(self._rows, self.order()),
            ranks=self.ranks,
            hooks=self.hooks(),
            tokenizer=self.tokenizer,
        )
        # Before a checkpoint is loaded: the reference is the model at the start, not at the resumed step.
        context.progress.update(activity="the reference reads the pairs")
        trainer.compute_reference()
        return trainer

    def after_step(self, reading: StepReading) -> None:
        """Record the rewards of a step, then the step.

        Raises:
            DivergedError, StopRequested, InfrastructureError: as `TuningRun.after_step`.
        """
        accuracy, margin = self._trainer.take_rewards()
        self.rewards.append((accuracy, margin))
        # Before the step is recorded, which may save a checkpoint: it must have the rewards.
        self._trainer.state.log_history.append({_REWARDS: [accuracy, margin]})
        super().after_step(reading)


def rewards_of(log_history: Sequence[LogEntry]) -> list[tuple[float, float]]:
    """Return accuracy and margin of each step in the log of the trainer's state."""
    values = [entry.get(_REWARDS) for entry in log_history]
    return [(float(value[0]), float(value[1])) for value in values if isinstance(value, list)]
