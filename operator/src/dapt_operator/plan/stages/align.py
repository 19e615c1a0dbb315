"""The stages after selection: fine-tuning, preference tuning, verification, publication.

Like those before it (`blueprint`), one function a stage; what a configuration needs of an earlier stage is an argument.
"""

from __future__ import annotations

from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing.resolve import (
    align_gang,
    lora_config,
    preference_learning_rate,
)
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import StagePlan
from dapt_operator.plan.stages.tuning_batch import _batch


def align_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
    halvings: int = 0,
) -> StagePlan | None:
    """Preference tuning of the fine-tuned model; None when the micro-batch cannot be halved as often as that.

    Raises:
        RefusedError: as `resolve_pretraining`.
    """
    wish = spec.preference
    assert wish is not None
    gang = align_gang(spec, profile)
    length = prepared.sequence_length_tokens
    if spec.finetuning is not None and spec.finetuning.sequence_length is not None:
        length = min(spec.finetuning.sequence_length, prepared.model.max_positions)
    lora = lora_config(wish.method)
    batch = _batch(
        spec,
        profile,
        prepared,
        gang,
        "preference",
        wish,
        lora,
        sequence_length_tokens=length,
        copies=2,
        halvings=halvings,
    )
    if batch is None:
        return None
    config = AlignConfig(
        model=model,
        beta=wish.beta,
        lora=lora,
        epochs=wish.epochs,
        sequence_length_tokens=length,
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        optimizer=common.optimizer(
            wish.optimizer, preference_learning_rate(wish.method, wish.optimizer.learning_rate)
        ),
        schedule=common.schedule(wish.schedule),
        distribution=common.distribution(batch),
        seed=spec.seed,
    )
    return StagePlan(
        "align",
        "align",
        attempt,
        candidate,
        config,
        common.gang_resources(gang, spec, spec.stage_resources.align),
        signs_checkpoints=True,
    )
