"""Fine-tunes a model on conversations (finetune); the loss counts response tokens only.

The order of the examples is a pure function of the seed, so a run that resumes from a checkpoint of another one ends
with the same weights as an unbroken run.
"""

from __future__ import annotations

import logging
import math

from dapt_contract.stages.finetune import FinetuneConfig, FinetuneFacts, FinetuneReport
from dapt_trainer.context import StageContext, keep_alive
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.flops import flops_per_token
from dapt_trainer.modeling.protocols import Tokenizer
from dapt_trainer.modeling.stored_models.model_folder import load_tokenizer
from dapt_trainer.preflight.check import training_ranks
from dapt_trainer.training.setup import set_up
from dapt_trainer.training.step_trainer import StepRows, StepTrainer
from dapt_trainer.training.tuning.instruction_rows import PackedExamples, tokenize_all
from dapt_trainer.training.tuning.tuning_run import TuningRun

logger = logging.getLogger(__name__)


def run(config: FinetuneConfig, context: StageContext) -> FinetuneReport:
    """Tune the referenced model.

    Raises:
        InputError: no conversation can be learned from, or batch sizes do not divide.
        DivergedError: loss or gradient is not a number.
        StopRequested: SIGTERM; a checkpoint was saved.
        InfrastructureError: a checkpoint or the result could not be written, or a newer run took over.
    """
    ranks = training_ranks(context)
    context.progress.update(activity="tokenizing conversations")
    tokenizer = load_tokenizer(context.work, config.model.weights)
    examples = tokenize_all(
        tokenizer,
        context.work / config.data_folder,
        sequence_length_tokens=config.sequence_length_tokens,
        expected_digest=config.data_digest,
        progress=context.progress,
    )
    rows = PackedExamples(
        examples.kept,
        sequence_length_tokens=config.sequence_length_tokens,
        minimum_rows=max(config.global_batch_size, config.minimum_rows),
        seed=config.seed,
        padding_id=tokenizer.pad_token_id or 0,
    )
    steps = total_steps(config, rows.rows)
    rows.limit(steps * config.global_batch_size)
    if ranks.is_first and (examples.cut or examples.dropped):
        logger.warning(
            "%d examples are cut at %d tokens, %d more have no response within it and are left out",
            examples.cut,
            config.sequence_length_tokens,
            examples.dropped,
        )
    tuned = FinetuneRun(config, context, ranks, tokenizer, rows, steps).run()
    facts = FinetuneFacts(
        model=tuned.reference,
        weights_digest=tuned.weights_digest,
        steps=len(tuned.curve),
        examples=len(examples.kept),
        response_tokens=examples.response_tokens,
        first_loss_nats=tuned.curve[0].loss_nats,
        last_loss_nats=tuned.curve[-1].loss_nats,
        cut_examples=examples.cut,
        dropped_examples=examples.dropped,
        rows=rows.rows,
        fill_fraction=rows.fill_fraction,
    )
    return FinetuneReport(facts=facts, curve=tuned.curve)


def total_steps(config: FinetuneConfig, rows: int) -> int:
    """Return the optimizer steps: as configured, or the epochs' rounded up to whole batches.

    An epoch is every packed row once.
    """
    if config.total_steps is not None:
        return config.total_steps
    return max(1, math.ceil((config.epochs or 1.0) * rows / config.global_batch_size))


class FinetuneRun(TuningRun):
    """Tunes on packed conversations, with the same loop, attention and kernels as pretraining."""

    NAME = "fine-tuning"
    LEARNING_RATE_FIELD = "finetuning.optimizer.learningRate"

    def __init__(
        self,
        config: FinetuneConfig,
        context: StageContext,
        ranks: Ranks,
        tokenizer: Tokenizer,
        rows: PackedExamples,
        total_steps: int,
    ) -> None:
        super().__init__(config, context, ranks, tokenizer, total_steps)
        self.config = config
        self._rows = rows

    def make_trainer(self) -> StepTrainer:
        """Load the model and return its trainer."""
        with keep_alive(self.context.progress):  # loading a model is one long call
            setup = set_up(self.config, self.context, self.ranks, total_steps=self.total_steps)
        self.context.progress.update(flops_per_token=flops_per_token(setup.model))
        return StepTrainer(
            model=setup.model,
            args=setup.arguments,
            rows=StepRows(self._rows, self.order(), self._tokens_of_step),
            ranks=self.ranks,
            hooks=self.hooks(),
            collate=setup.attention.collate,
        )

    def _tokens_of_step(self, step: int) -> int:
        batch = self.config.global_batch_size
        return sum(self._rows.tokens(row) for row in range(step * batch, (step + 1) * batch))
