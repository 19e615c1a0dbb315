"""What a try of pretraining or fine-tuning trains with: arguments and kernels, then the model as those say, then its
attention."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_trainer.context import StageContext
from dapt_trainer.distributed import Ranks
from dapt_trainer.modeling.attention import Attention, choose_attention, use_attention
from dapt_trainer.modeling.kernels import Kernels, choose_kernels

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """Ready for the trainer."""

    arguments: Any
    """transformers' `TrainingArguments`."""
    model: Any
    """With adapters where they are trained."""
    attention: Attention
    kernels: Kernels


def set_up(
    config: PretrainConfig | FinetuneConfig,
    context: StageContext,
    ranks: Ranks,
    *,
    load_universal: bool = False,
    total_steps: int | None = None,
) -> Setup:
    """Load the model of a configuration the way its distribution wants it.

    The arguments come before the model: while they exist with stage 3, transformers spreads weights as it reads them.

    Args:
        config: of the stage.
        context: of the stage.
        ranks: all of them call this.
        load_universal: the state to resume from was converted for this number of ranks.
        total_steps: of the run; None: the configuration says it.

    Raises:
        InputError: as `load_model` and `accumulation_steps`.
    """
    from transformers import AutoConfig, set_seed

    from dapt_trainer.modeling.lora import with_lora
    from dapt_trainer.tokenization.grow_model import new_token_ids

    kernels = choose_kernels(
        AutoConfig.from_pretrained(context.work / config.model.weights, local_files_only=True),
        ranks.device,
        tokens_per_pass=config.micro_batch_size * config.sequence_length_tokens,
        zero_stage=config.distribution.zero_stage,
    )
    steps = total_steps or config.total_steps
    assert steps is not None
    arguments = _arguments(config, context, ranks, kernels, steps, load_universal=load_universal)
    precision = config.distribution.precision
    model = load_start(config, context, ranks, arguments)
    boundaries = not isinstance(config, PretrainConfig) or config.document_boundaries
    attention = choose_attention(model, ranks.device, document_boundaries=boundaries, precision=precision)
    use_attention(model, attention)
    if ranks.is_first:
        _LOG.info("attention: %s", attention.text)
        _LOG.info("kernels: %s", kernels.text)
    set_seed(config.seed)
    if config.lora is not None:
        new_ids = new_token_ids(context.work) if config.lora.embeddings else ()
        model = with_lora(model, config.lora, seed=config.seed, new_token_ids=new_ids)
    return Setup(arguments, model, attention, kernels)


def load_start(
    config: PretrainConfig | FinetuneConfig | AlignConfig, context: StageContext, ranks: Ranks, arguments: Any
) -> Any:
    """The model that a training starts from, laid out over the ranks as `arguments` say.

    Raises:
        InputError: as `load_model`.
    """
    from dapt_trainer.modeling.compose import load_model
    from dapt_trainer.modeling.sharding import load_to_train

    precision = config.distribution.precision
    return load_to_train(
        lambda device: load_model(context.work, config.model, precision=precision, device=device),
        arguments,
        device=ranks.device,
        from_files=config.model.is_plain,
    )


def _arguments(
    config: PretrainConfig | FinetuneConfig,
    context: StageContext,
    ranks: Ranks,
    kernels: Kernels,
    total_steps: int,
    *,
    load_universal: bool,
) -> Any:
    from transformers import TrainingArguments

    from dapt_trainer.training.arguments import accumulation_steps, training_arguments

    return TrainingArguments(
        **training_arguments(
            scratch=context.scratch,
            total_steps=total_steps,
            micro_batch_size=config.micro_batch_size,
            accumulation=accumulation_steps(
                config.global_batch_size, config.micro_batch_size, ranks.world_size
            ),
            optimizer=config.optimizer,
            schedule=config.schedule,
            distribution=config.distribution,
            seed=config.seed,
            on_cpu=ranks.device.type == "cpu",
            load_universal=load_universal,
            kernels=kernels,
        )
    )
