"""Plans align: preference tuning (DPO) of the fine-tuned model."""

from __future__ import annotations

from dapt_contract.layout import PREFERENCES
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import ModelReference
from dapt_operator.api.v1alpha1.spec_training import Preference
from dapt_operator.plan.sizing.model_fit.batch import Batch, MemoryRule
from dapt_operator.plan.sizing.tuning import preference_request
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, StagePlan, TuningData, rank_resources
from dapt_operator.plan.stage_parts.tuning import fit_tuning_batch, tuning_config


def align_batch(inputs: StageInputs, settings: Preference, memory_rule: MemoryRule = "withMargin") -> Batch:
    """Return the batch of preference tuning.

    Raises:
        RefusedError: as `fit_batch`.
    """
    request = preference_request(inputs.spec, inputs.profile, settings)
    return fit_tuning_batch(inputs, request, inputs.preferences, memory_rule)


def align_stage(
    inputs: StageInputs,
    settings: Preference,
    batch: Batch,
    candidate: str,
    model: ModelReference,
    *,
    attempt: int = 1,
) -> StagePlan:
    """Return the plan of preference tuning `model` with this batch."""
    spec = inputs.spec
    request = preference_request(spec, inputs.profile, settings).on_nodes(batch.nodes)
    training = tuning_config(inputs, request, batch, model)
    data = inputs.preferences or TuningData(PREFERENCES)
    return StagePlan(
        kind="align",
        attempt=attempt,
        candidate=candidate,
        inputs_digest=data.digest,
        config=AlignConfig(
            **vars(training),
            data_folder=data.folder,
            data_digest=data.content_digest,
            beta=settings.beta,
            epochs=settings.epochs,
        ),
        resources=rank_resources(request.layout, spec, spec.stage_resources.align),
        signs_checkpoints=True,
    )
