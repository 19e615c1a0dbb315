"""The stages after selection: fine-tuning, preference tuning, verification, publication.

Like those before it (`blueprint`), one function a stage; what a configuration needs of an earlier stage is an argument.
"""

from __future__ import annotations

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.sizing.resolve import (
    finetune_gang,
    learning_rate,
    lora_config,
)
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import StagePlan
from dapt_operator.plan.stages.tuning_batch import _batch


def finetune_stage(
    spec: DomainAdaptationSpec,
    profile: AdaptationProfileSpec,
    prepared: PrepareFacts,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
    halvings: int = 0,
) -> StagePlan | None:
    """Supervised fine-tuning; None when the micro-batch cannot be halved as often as that.

    Raises:
        RefusedError: as `resolve_pretraining`.
    """
    tuning = spec.finetuning
    assert tuning is not None
    gang = finetune_gang(spec, profile)
    length = min(tuning.sequence_length or prepared.sequence_length_tokens, prepared.model.max_positions)
    lora = lora_config(tuning.method)
    batch = _batch(
        spec,
        profile,
        prepared,
        gang,
        "finetuning",
        tuning,
        lora,
        sequence_length_tokens=length,
        halvings=halvings,
    )
    if batch is None:
        return None
    config = FinetuneConfig(
        model=model,
        lora=lora,
        epochs=tuning.budget.epochs,
        total_steps=tuning.budget.steps,
        sequence_length_tokens=length,
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        optimizer=common.optimizer(
            tuning.optimizer, learning_rate(tuning.method, tuning.optimizer.learning_rate)
        ),
        schedule=common.schedule(tuning.schedule),
        distribution=common.distribution(batch),
        seed=spec.seed,
    )
    return StagePlan(
        "finetune",
        "finetune",
        attempt,
        candidate,
        config,
        common.gang_resources(gang, spec, spec.stage_resources.finetune),
        signs_checkpoints=True,
    )
