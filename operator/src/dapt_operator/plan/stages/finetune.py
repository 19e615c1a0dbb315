"""Plans finetune: supervised fine-tuning of the chosen model."""

from __future__ import annotations

from dapt_contract.layout import INSTRUCTIONS
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_operator.api.v1alpha1.spec_training import Finetuning
from dapt_operator.plan.sizing.model_fit.batch import Batch, MemoryRule
from dapt_operator.plan.sizing.tuning import finetuning_request
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, StagePlan, TuningData, rank_resources
from dapt_operator.plan.stage_parts.tuning import fit_tuning_batch, num_records, tuning_config


def finetune_batch(
    inputs: StageInputs, settings: Finetuning, memory_rule: MemoryRule = "withMargin"
) -> Batch:
    """Return the batch of fine-tuning.

    Raises:
        RefusedError: as `fit_batch`.
    """
    request = finetuning_request(inputs.spec, inputs.profile, settings)
    return fit_tuning_batch(inputs, request, inputs.instructions, memory_rule)


def finetune_stage(
    inputs: StageInputs,
    settings: Finetuning,
    batch: Batch,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
) -> StagePlan:
    """Return the plan of fine-tuning `model` with this batch."""
    spec, budget = inputs.spec, settings.budget
    request = finetuning_request(spec, inputs.profile, settings).on_nodes(batch.nodes)
    training = tuning_config(inputs, request, batch, model)
    data = inputs.instructions or TuningData(INSTRUCTIONS)
    return StagePlan(
        kind="finetune",
        attempt=attempt,
        candidate=candidate,
        inputs_digest=data.digest,
        config=FinetuneConfig(
            **vars(training),
            data_folder=data.folder,
            data_digest=data.content_digest,
            epochs=budget.epochs,
            total_steps=budget.steps,
            minimum_rows=request.minimum_rows(num_records(data)) or 1,
        ),
        resources=rank_resources(request.layout, spec, spec.stage_resources.finetune),
        signs_checkpoints=True,
    )
