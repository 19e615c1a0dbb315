"""align: direct preference optimization (Rafailov et al. 2023); the reference is the model that it starts from.

The reference's likelihoods are computed anew by each try, from the model that the first one started from; then it goes
on from the newest checkpoint.
"""

from __future__ import annotations

import logging
import math
from statistics import fmean
from typing import Any

from dapt_contract.stages.align import AlignConfig, AlignFacts, AlignReport
from dapt_trainer.context import StageContext, beating
from dapt_trainer.digests import weights_digest
from dapt_trainer.distributed import Ranks, join_ranks
from dapt_trainer.modeling.model_folder import load_tokenizer
from dapt_trainer.training.chat import with_template
from dapt_trainer.training.preference_pairs import ShuffledPairs, tokenize_pairs
from dapt_trainer.training.tuning_run import TuningRun, newest_part, save_tuned

logger = logging.getLogger(__name__)


def run(config: AlignConfig, context: StageContext) -> AlignReport:
    """Tune the referenced model on preference pairs.

    Raises:
        InputError: no pair can be learned from, the chat template does not fit, or batch sizes do not.
        Diverged: loss or gradient is not a number.
        StopRequested: SIGTERM; a checkpoint was saved.
        InfrastructureError: a checkpoint or the result could not be written, or a newer try took over.
    """
    ranks = join_ranks(context.rank, context.local_rank, context.world_size)
    context.progress.update(activity="tokenizing preference pairs")
    tokenizer = with_template(load_tokenizer(context.work, config.model.weights))
    pairs = tokenize_pairs(
        tokenizer,
        context.work,
        sequence_length_tokens=config.sequence_length_tokens,
        progress=context.progress,
    )
    steps = max(1, math.ceil(config.epochs * len(pairs.kept) / config.global_batch_size))
    rows = ShuffledPairs(pairs.kept, rows=steps * config.global_batch_size, seed=config.seed)
    if ranks.is_first and (pairs.cut or pairs.dropped):
        logger.warning(
            "answers of %d pairs are cut at %d tokens, %d more have no room for them and are left out",
            pairs.cut,
            config.sequence_length_tokens,
            pairs.dropped,
        )
    tuning = TuningRun(
        config,
        context,
        ranks,
        steps,
        what="preference tuning",
        rate_field="preference.optimizer.learningRate",
    )
    model = train(config, context, ranks, tuning, tokenizer, rows, steps)
    reference = save_tuned(context, ranks, model, tokenizer, config.model, config.lora)
    points = tuning.journal.points
    last = tuning.rewards[-math.ceil(len(tuning.rewards) / 10) :]
    facts = AlignFacts(
        model=reference,
        weights_digest=weights_digest(context.work / newest_part(reference)),
        steps=len(points),
        pairs=len(pairs.kept),
        first_loss_nats=points[0].loss_nats,
        last_loss_nats=points[-1].loss_nats,
        reward_accuracy=fmean(accuracy for accuracy, _ in last),
        reward_margin=fmean(margin for _, margin in last),
        cut_pairs=pairs.cut,
        dropped_pairs=pairs.dropped,
    )
    tuning.finish()
    return AlignReport(facts=facts, curve=tuple(points))


def train(
    config: AlignConfig,
    context: StageContext,
    ranks: Ranks,
    tuning: TuningRun,
    tokenizer: Any,
    rows: ShuffledPairs,
    steps: int,
) -> Any:
    """The model after all steps."""
    from transformers.trainer_callback import PrinterCallback

    from dapt_trainer.modeling.flops import flops_per_token
    from dapt_trainer.training.preference_trainer import (
        PreferenceTrainer,
        load_to_align,
        preference_arguments,
    )
    from dapt_trainer.training.step_trainer import StepReading

    context.progress.update(activity="loading the model")
    arguments = preference_arguments(config, context, ranks, steps)
    with beating(context.progress):  # following a recipe is one long call
        model = load_to_align(config, context, ranks, arguments)
    context.progress.update(flops_per_token=flops_per_token(model))

    def after_step(reading: StepReading) -> None:
        tuning.note_rewards(*trainer.take_rewards())
        tuning.after_step(reading)

    trainer = PreferenceTrainer(
        model=model,
        arguments=arguments,
        rows=rows,
        order=tuning.order(),
        ranks=ranks,
        tokenizer=tokenizer,
        on_step=after_step,
        stop_requested=context.progress.stop_requested,
        save_due=tuning.is_save_due,
        heartbeat=context.progress.heartbeat,
    )
    trainer.remove_callback(PrinterCallback)
    context.progress.update(activity="the reference reads the pairs")
    trainer.note_reference()
    tuning.train(trainer)
    return model
