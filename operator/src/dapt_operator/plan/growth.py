"""The base model's sizes with the rows of a grown tokenizer, for the estimates of memory, compute and disk."""

from __future__ import annotations

from dapt_contract.stages.prepare import ModelFacts, TokenizerFacts
from dapt_operator.api.spec import DomainAdaptationSpec
from dapt_operator.plan.parts import tokenizer_extension


def grown_model(
    model: ModelFacts, spec: DomainAdaptationSpec, tokenizer: TokenizerFacts | None = None
) -> ModelFacts:
    """The model that is trained: each new token has a row of the embedding and, untied, one of the head.

    parameters = the base model's + new tokens x hidden size x (1 tied, 2 untied).

    Args:
        model: the base model's facts; the same ones come back where they are grown already.
        spec: what is asked for.
        tokenizer: what growing brought; None: not prepared yet, as many tokens as may be added are counted.
    """
    wanted = tokenizer_extension(spec)
    if wanted is None or model.added_tokens is not None:
        return model
    added = wanted.vocabulary_size if tokenizer is None else tokenizer.added_tokens
    rows = added * (1 if model.tied_embeddings else 2)
    return model.model_copy(
        update={
            "parameters": model.parameters + rows * model.hidden_size,
            "vocabulary_size": model.vocabulary_size + added,
            "added_tokens": added,
        }
    )
