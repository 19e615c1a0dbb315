"""A grown tokenizer in the plan: the sizes of the model that is trained, and when its training has paid off."""

from __future__ import annotations

from dapt_contract.measure import Measure
from dapt_contract.stages.prepare import ModelFacts, TokenizerFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing.resolve import tokenizer_extension


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


def break_even_tokens(base: Measure, pretrained: PretrainFacts) -> int | None:
    """Training tokens after which the grown model predicts the domain's held-out text as well as the base model does.

    Both are measured in nats over the same bytes, so the comparison is that of bits per byte. It is the first
    checkpoint from which on no later one is worse than the base model; what training taught beside the new rows counts,
    because nobody trains the rows alone. None: the last checkpoint is worse.

    Args:
        base: the base model's measure, with its own tokenizer.
        pretrained: an attempt from step 0.
    """
    limit = base.domain.both.loss_nats
    shares = (base.domain.a.tokens, base.domain.b.tokens)
    first = None
    for row in pretrained.checkpoints:
        nats = (row.domain_a_nats * shares[0] + row.domain_b_nats * shares[1]) / sum(shares)
        first = (first or row.step) if nats <= limit else None
    return None if first is None else round(pretrained.tokens * first / pretrained.steps)
