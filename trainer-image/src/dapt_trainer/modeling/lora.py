"""Adds low-rank adapters to a model."""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from dapt_contract.stages.common import LoraConfig
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.loading.sharding import is_sharded


def with_lora(
    model: PreTrainedModel, lora: LoraConfig, *, seed: int, new_token_ids: Sequence[int] = ()
) -> PeftModel:
    """Return the model with new low-rank adapters as its only trainable parameters; equal seeds give equal adapters.

    Args:
        model: to train.
        lora: configuration of the adapters.
        seed: of their first values.
        new_token_ids: tokens that extended the tokenizer; their rows of embedding and head are trained too, those of
            the old tokens stay the base model's.

    Raises:
        InputError: new rows of a model whose weights are spread over the ranks.
    """
    if new_token_ids and is_sharded(model):
        raise InputError(
            "spec.pretraining.distribution.zeroStage: with 3, adapters cannot train the rows of new tokens "
            "(spec.model.tokenizer.extend); write 2, with offload: optimizer where memory is short, or train all "
            "weights"
        )
    # PEFT draws the first values from torch's global stream.
    set_seed(seed)
    targets = (
        lora.targets if lora.targets == "all-linear" else [name.strip() for name in lora.targets.split(",")]
    )
    settings = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=new_rows(model, new_token_ids),
    )
    return get_peft_model(model, settings)


def new_rows(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, list[int]] | None:
    """Return the ids of new tokens by the name of each matrix that holds their rows; None when there are none.

    A tied head follows the embedding.
    """
    if not ids:
        return None
    is_tied = bool(model.config.tie_word_embeddings)
    matrices = [model.get_input_embeddings(), *(() if is_tied else (model.get_output_embeddings(),))]
    names = [name for matrix in matrices for name, module in model.named_modules() if module is matrix]
    return {name: list(ids) for name in names}
