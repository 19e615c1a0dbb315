"""The stages after selection: fine-tuning, preference tuning, verification, publication.

Like those before it (`blueprint`), one function a stage; what a configuration needs of an earlier stage is an argument.
"""

from __future__ import annotations

from dapt_contract.stages.common import LoraConfig
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_training import Finetuning, Preference
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.resolve import (
    Batch,
    RankLayout,
    fit_batch,
    halved,
)


def _batch(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    gang: RankLayout,
    block: str,
    tuning: Finetuning | Preference,
    lora: LoraConfig | None,
    *,
    sequence_length_tokens: int,
    copies: int = 1,
    halvings: int,
) -> Batch | None:
    """A global batch that these ranks can share, by default pretraining's, and what of it fits into their memory.

    Args:
        block: of the spec, for messages.
        copies: sequences that one unit of the batch holds.
        halvings: how often the micro-batch ran out of memory; None comes back when it cannot be halved so often.
    """
    share = gang.world_size * (tuning.micro_batch_size or 1)
    shareable = max(1, spec.pretraining.global_batch_size // share) * share
    fitted = fit_batch(
        grown_model(prepared.model, spec, prepared.tokenizer),
        spec,
        profile,
        gang,
        stage=block,
        lora=lora,
        global_batch_size=tuning.global_batch_size or shareable,
        micro_batch_size=tuning.micro_batch_size,
        sequence_length_tokens=sequence_length_tokens,
        copies=copies,
    )
    return halved(fitted, halvings)
