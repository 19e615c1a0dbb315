"""Prepares what pretraining and fine-tuning train with: arguments, kernels, model, attention."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from peft import PeftModel
from pydantic import TypeAdapter
from transformers import AutoConfig, PreTrainedModel, TrainingArguments, set_seed

from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_trainer.context import StageContext
from dapt_trainer.digests import HeldWeights, check_weights, size_of_reference
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.attention import Attention, choose_attention, use_attention
from dapt_trainer.modeling.kernels import Kernels, choose_kernels, with_loss
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.loading.sharding import load_to_train
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.modeling.sequence_parallel import share_sequences
from dapt_trainer.modeling.stored_models.model_folder import check_model_folder
from dapt_trainer.modeling.written_models.for_stages import WrittenModels
from dapt_trainer.tokenization.grow_model import new_token_ids
from dapt_trainer.training.arguments import training_arguments
from dapt_trainer.training.block_compilation import choose_compilation, compile_blocks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """Holds everything that the trainer is constructed with."""

    arguments: TrainingArguments
    model: PreTrainedModel | PeftModel
    """With adapters where they are trained."""
    attention: Attention
    kernels: Kernels


def set_up(
    config: PretrainConfig | FinetuneConfig,
    context: StageContext,
    ranks: Ranks,
    *,
    total_steps: int,
    load_universal: bool = False,
) -> Setup:
    """Load the model of a configuration in the way that its distribution needs; all ranks call it.

    Args:
        config: of the stage.
        context: of the stage.
        ranks: that train.
        total_steps: optimizer steps of the run.
        load_universal: the state to resume from was converted for this number of ranks.

    Raises:
        InputError: as `load_model` and `accumulation_steps`.
    """
    folder = context.work / config.model.weights
    check_model_folder(folder)
    kernels = choose_kernels(
        AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
        ranks.device,
        tokens_per_pass=config.micro_batch_size
        * config.sequence_length_tokens
        // config.distribution.sequence_parallel,
        zero_stage=config.distribution.zero_stage,
    )
    # Before the model: while arguments with stage 3 exist, transformers spreads the weights as it reads them.
    arguments = training_arguments(
        config,
        context.scratch,
        ranks,
        total_steps=total_steps,
        kernels=kernels,
        load_universal=load_universal,
    )
    model = load_start(config, context, ranks, arguments)
    attention = choose_attention(
        model,
        ranks.device,
        document_boundaries=not isinstance(config, PretrainConfig) or config.document_boundaries,
        precision=config.distribution.precision,
    )
    attention = share_sequences(attention, model, ranks, config.distribution.sequence_parallel)
    use_attention(model, attention)
    if ranks.is_first:
        logger.info("attention: %s", attention.text)
    kernels = with_loss(kernels, model)
    if ranks.is_first:
        logger.info("kernels: %s", kernels.text)
    set_seed(config.seed)
    if config.lora is not None:
        new_ids = new_token_ids(context.work) if config.lora.embeddings else ()
        model = with_lora(model, config.lora, seed=config.seed, new_token_ids=new_ids)
    # After the adapters: what a block contains is part of what is compiled.
    compilation = choose_compilation(ranks.device, config.distribution)
    if compilation.is_used:
        compile_blocks(model)
    if ranks.is_first:
        logger.info("compilation: %s", compilation.text)
    return Setup(arguments, model, attention, kernels)


def load_start(
    config: PretrainConfig | FinetuneConfig | AlignConfig,
    context: StageContext,
    ranks: Ranks,
    arguments: TrainingArguments,
) -> PreTrainedModel:
    """Return the model that a training starts from, laid out over the ranks as `arguments` say.

    Raises:
        InputError: as `load_model`; also when the weights are not those that were recorded.
        InfrastructureError: they were written to while they were read.
    """
    held = HeldWeights(context.work, [config.model])
    precision = config.distribution.precision
    with context.keep_alive(size_of_reference(context.work, config.model)):
        # One rank for all: it reads every byte of the model.
        ranks.from_first(
            lambda: check_weights(context.work, config.model, config.recorded, {}), TypeAdapter(None)
        )
    written = WrittenModels(context, ranks)
    start = written.plain(config.model)
    with context.keep_alive(size_of_reference(context.work, start)):
        model = load_to_train(
            lambda device: load_model(context.work, start, precision=precision, device=device),
            arguments,
            device=ranks.device,
            folder=context.work / start.weights,
        )
    held.require_unchanged()
    written.require_unchanged()
    return model
