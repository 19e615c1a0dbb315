"""finetune: supervised fine-tuning on conversations; the loss counts response tokens alone.

Short beside pretraining, so it keeps no checkpoints: killed and run again it starts from its beginning and, the order
of the examples being a pure function of the seed, ends with the same weights.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.finetune import FinetuneConfig, FinetuneFacts, FinetuneReport
from dapt_trainer.context import StageContext
from dapt_trainer.errors import Diverged, InfrastructureError, StopRequested
from dapt_trainer.training.beating import beating
from dapt_trainer.training.journal import CURVE_FILE, Journal
from dapt_trainer.training.models import load_model, load_tokenizer, weights_digest, with_lora
from dapt_trainer.training.ranks import Ranks, join_ranks
from dapt_trainer.training.sft import Example, ShuffledExamples, tokenize_all, with_template

RESULT = "model"
"""Below the try's folder."""


def run(config: FinetuneConfig, context: StageContext) -> FinetuneReport:
    """Tune the referenced model.

    Raises:
        InputError: no conversation can be learned from, or batch sizes do not fit.
        Diverged: loss or gradient is not a number.
        StopRequested: SIGTERM; nothing is kept, the next try starts from the beginning.
        InfrastructureError: the result could not be written.
    """
    ranks = join_ranks(context.rank, context.local_rank, context.world_size)
    context.progress.update(activity="tokenizing conversations")
    tokenizer = with_template(load_tokenizer(context.work, config.model.weights))
    examples = tokenize_all(tokenizer, context.work, sequence_length_tokens=config.sequence_length_tokens)
    steps = total_steps(config, len(examples))
    rows = ShuffledExamples(examples, rows=steps * config.global_batch_size, seed=config.seed)
    context.progress.update(activity="loading the model", total_steps=steps)
    model = load_model(context.work, config.model, precision=config.distribution.precision)
    if config.lora:
        model = with_lora(model, config.lora, seed=config.seed)
    journal = Journal(context.try_folder / CURVE_FILE if ranks.is_first else None)
    train(config, context, ranks, model, tokenizer, rows, journal, steps)
    with beating(context.progress):
        reference = save_result(config, context, ranks, model, tokenizer)
    return FinetuneReport(
        facts=facts_of(context.work, reference, examples, journal), curve=tuple(journal.points)
    )


def total_steps(config: FinetuneConfig, examples: int) -> int:
    """Optimizer steps: as said, or the epochs' rounded up to whole batches."""
    if config.total_steps is not None:
        return config.total_steps
    return max(1, math.ceil((config.epochs or 1.0) * examples / config.global_batch_size))


def train(
    config: FinetuneConfig,
    context: StageContext,
    ranks: Ranks,
    model: Any,
    tokenizer: Any,
    rows: ShuffledExamples,
    journal: Journal,
    steps: int,
) -> None:
    """All steps, by the same loop as pretraining."""
    from transformers import TrainingArguments
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from dapt_trainer.training.arguments import accumulation_steps, training_arguments
    from dapt_trainer.training.batches import BatchOrder
    from dapt_trainer.training.flops import flops_per_token
    from dapt_trainer.training.loop import StepReading, StepTrainer

    context.progress.update(flops_per_token=flops_per_token(model))
    batch = config.global_batch_size

    def tokens_of_step(step: int) -> int:
        return sum(len(rows.example(row).input_ids) for row in range(step * batch, (step + 1) * batch))

    seconds = 0.0

    def after_step(reading: StepReading) -> None:
        nonlocal seconds
        seconds += reading.seconds
        journal.note(reading, seconds)
        context.progress.update(
            activity="training",
            fraction=reading.step / steps,
            step=reading.step,
            total_steps=steps,
            tokens=reading.tokens,
            tokens_per_second=journal.recent_tokens_per_second,
            loss_nats=reading.loss_nats,
            learning_rate=reading.learning_rate,
            gradient_norm=reading.gradient_norm,
            step_seconds=reading.seconds,
            eta_seconds=(steps - reading.step) * journal.step_seconds_median,
        )
        if not reading.is_finite:
            raise Diverged(
                f"fine-tuning stopped at step {reading.step} of {steps}: the loss is {reading.loss_nats:g} and the "
                f"gradient norm {reading.gradient_norm:g}; lower finetuning.optimizer.learningRate"
            )
        if reading.stop_requested and reading.step < steps:
            raise StopRequested(
                f"asked to stop at step {reading.step} of {steps}; fine-tuning keeps no checkpoint and starts again"
            )

    arguments = training_arguments(
        scratch=context.scratch,
        total_steps=steps,
        micro_batch_size=config.micro_batch_size,
        accumulation=accumulation_steps(batch, config.micro_batch_size, ranks.world_size),
        optimizer=config.optimizer,
        schedule=config.schedule,
        distribution=config.distribution,
        seed=config.seed,
        on_cpu=ranks.device.type == "cpu",
    )
    trainer = StepTrainer(
        model=model,
        args=TrainingArguments(**arguments),
        rows=rows,
        order=BatchOrder(
            total_steps=steps,
            global_batch_size=batch,
            micro_batch_size=config.micro_batch_size,
            rank=ranks.rank,
            world_size=ranks.world_size,
        ),
        ranks=ranks,
        tokens_of_step=tokens_of_step,
        stop_requested=context.progress.stop_requested,
        out_of_time=lambda: False,
        heartbeat=context.progress.heartbeat,
        on_step=after_step,
        # One row of all conversations of a micro-batch instead of padding; positions restart with each of them.
        data_collator=DataCollatorForLanguageModeling(tokenizer.pad_token_id or 0, padding_free=True),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.resume_training(None)


def save_result(
    config: FinetuneConfig, context: StageContext, ranks: Ranks, model: Any, tokenizer: Any
) -> ModelReference:
    """Write adapter or weights below the try's folder and say how to find the tuned model.

    Raises:
        InfrastructureError: the disk is full.
    """
    from dapt_trainer.training.weights import save_weights

    folder = context.try_folder / RESULT
    if ranks.is_first:
        context.progress.update(activity="saving the tuned model")
        partial = folder.with_name(f"{RESULT}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            save_weights(model, tokenizer, partial)
            tokenizer.save_pretrained(partial)  # with the chat template, also beside an adapter
            partial.rename(folder)
        except Exception as error:  # torch and safetensors raise their own kinds for a full disk
            shutil.rmtree(partial, ignore_errors=True)
            raise InfrastructureError(
                f"the tuned model could not be saved below {context.try_folder}: {' '.join(str(error).split())[:200]}; "
                "make the volume larger, then it is tuned again"
            ) from error
    ranks.barrier()
    name = folder.relative_to(context.work).as_posix()
    if config.lora is None:
        return ModelReference(weights=name)
    return ModelReference(weights=config.model.weights, adapters=(*config.model.adapters, name))


def facts_of(
    work: Path, reference: ModelReference, examples: list[Example], journal: Journal
) -> FinetuneFacts:
    """What the operator reads."""
    newest = reference.adapters[-1] if reference.adapters else reference.weights
    return FinetuneFacts(
        model=reference,
        weights_digest=weights_digest(work / newest),
        steps=len(journal.points),
        examples=len(examples),
        response_tokens=sum(example.response_tokens for example in examples),
        first_loss_nats=journal.points[0].loss_nats,
        last_loss_nats=journal.points[-1].loss_nats,
    )
