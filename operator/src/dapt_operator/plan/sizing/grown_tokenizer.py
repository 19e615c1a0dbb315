"""A grown tokenizer in the plan: the sizes of the model that is trained, and when its training has paid off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dapt_contract.measure import Measure
from dapt_contract.stages.prepare import ModelFacts, TokenizerFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing.resolve import tokenizer_extension

if TYPE_CHECKING:  # `dapt plan` needs no other model of that stage
    from dapt_contract.stages.pretrain import PretrainFacts


def grown_model(
    model: ModelFacts, spec: DomainAdaptationSpec, tokenizer: TokenizerFacts | None = None
) -> ModelFacts:
    """Return the facts of the model that is trained, with the rows of the new tokens.

    Args:
        model: the base model's facts; returned unchanged where they are grown already.
        spec: says whether and how the tokenizer grows.
        tokenizer: what growing brought; None: not prepared yet, as many tokens as may be added are counted.
    """
    extension = tokenizer_extension(spec)
    if extension is None or model.added_tokens is not None:
        return model
    return model.with_added_tokens(extension.vocabulary_size if tokenizer is None else tokenizer.added_tokens)


def break_even_tokens(base: Measure, pretrained: PretrainFacts) -> int | None:
    """Return after how many training tokens the grown model predicts the domain's held-out text as well as the base
    model does; None when the last checkpoint is worse.

    Both are measured in nats over the same bytes, so the comparison is that of bits per byte. It is the first
    checkpoint from which on no later one is worse than the base model; what training taught besides the new rows
    counts, because nothing trains the rows alone.

    Args:
        base: the base model's measure, with its own tokenizer.
        pretrained: an attempt from step 0.
    """
    limit_nats = base.domain.both.loss_nats
    tokens_a, tokens_b = base.domain.a.tokens, base.domain.b.tokens
    first_step = None
    for row in pretrained.checkpoints:
        nats = (row.domain_a_nats * tokens_a + row.domain_b_nats * tokens_b) / (tokens_a + tokens_b)
        first_step = (first_step or row.step) if nats <= limit_nats else None
    return None if first_step is None else round(pretrained.tokens * first_step / pretrained.steps)
