"""finetune: supervised fine-tuning on conversations; the loss counts response tokens alone.

The order of the examples is a pure function of the seed, so a try that goes on from a checkpoint of another one ends
with the same weights as if nothing had happened.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from dapt_contract.stages.finetune import FinetuneConfig, FinetuneFacts, FinetuneReport
from dapt_trainer.context import StageContext, beating
from dapt_trainer.digests import weights_digest
from dapt_trainer.distributed import Ranks, join_ranks
from dapt_trainer.modeling.model_folder import load_tokenizer
from dapt_trainer.training.instruction_rows import PackedExamples, tokenize_all
from dapt_trainer.training.tuning_run import TuningRun, newest_part, save_tuned

logger = logging.getLogger(__name__)


def run(config: FinetuneConfig, context: StageContext) -> FinetuneReport:
    """Tune the referenced model.

    Raises:
        InputError: no conversation can be learned from, the chat template does not fit, or batch sizes do not.
        Diverged: loss or gradient is not a number.
        StopRequested: SIGTERM; a checkpoint was saved.
        InfrastructureError: a checkpoint or the result could not be written, or a newer try took over.
    """
    ranks = join_ranks(context.rank, context.local_rank, context.world_size)
    context.progress.update(activity="tokenizing conversations")
    tokenizer = load_tokenizer(context.work, config.model.weights)
    examples = tokenize_all(
        tokenizer,
        context.work,
        sequence_length_tokens=config.sequence_length_tokens,
        progress=context.progress,
    )
    rows = PackedExamples(
        examples.kept,
        sequence_length_tokens=config.sequence_length_tokens,
        global_batch_size=config.global_batch_size,
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
    tuning = TuningRun(
        config, context, ranks, steps, what="fine-tuning", rate_field="finetuning.optimizer.learningRate"
    )
    model = train(config, context, ranks, tuning, rows, steps)
    reference = save_tuned(context, ranks, model, tokenizer, config.model, config.lora)
    points = tuning.journal.points
    facts = FinetuneFacts(
        model=reference,
        weights_digest=weights_digest(context.work / newest_part(reference)),
        steps=len(points),
        examples=len(examples.kept),
        response_tokens=examples.response_tokens,
        first_loss_nats=points[0].loss_nats,
        last_loss_nats=points[-1].loss_nats,
        cut_examples=examples.cut,
        dropped_examples=examples.dropped,
        rows=rows.rows,
        fill_fraction=rows.fill_fraction,
    )
    tuning.finish()
    return FinetuneReport(facts=facts, curve=tuple(points))


def total_steps(config: FinetuneConfig, rows: int) -> int:
    """Optimizer steps: as said, or the epochs' rounded up to whole batches; an epoch is every packed row once."""
    if config.total_steps is not None:
        return config.total_steps
    return max(1, math.ceil((config.epochs or 1.0) * rows / config.global_batch_size))


def train(
    config: FinetuneConfig,
    context: StageContext,
    ranks: Ranks,
    tuning: TuningRun,
    rows: PackedExamples,
    steps: int,
) -> Any:
    """The model after all steps, by the same loop, attention and kernels as pretraining."""
    from transformers.trainer_callback import PrinterCallback

    from dapt_trainer.modeling.flops import flops_per_token
    from dapt_trainer.training.setup import set_up
    from dapt_trainer.training.step_trainer import StepTrainer

    batch = config.global_batch_size
    context.progress.update(activity="loading the model")
    with beating(context.progress):  # following a recipe is one long call
        setup = set_up(config, context, ranks, total_steps=steps)
    context.progress.update(flops_per_token=flops_per_token(setup.model))
    trainer = StepTrainer(
        model=setup.model,
        args=setup.arguments,
        rows=rows,
        order=tuning.order(),
        ranks=ranks,
        tokens_of_step=lambda step: sum(rows.tokens(row) for row in range(step * batch, (step + 1) * batch)),
        stop_requested=context.progress.stop_requested,
        out_of_time=tuning.is_save_due,
        heartbeat=context.progress.heartbeat,
        on_step=tuning.after_step,
        data_collator=setup.attention.collate,
    )
    trainer.remove_callback(PrinterCallback)
    tuning.train(trainer)
    return setup.model
