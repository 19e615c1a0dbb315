"""Plans finetune: supervised fine-tuning of the chosen model."""

from __future__ import annotations

from dapt_contract.layout import INSTRUCTIONS
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_operator.api.v1alpha1.spec_training import Finetuning
from dapt_operator.plan.sizing.batch import Batch
from dapt_operator.plan.sizing.resolve import finetune_layout, learning_rate
from dapt_operator.plan.stages.stage_plan import StageInputs, StagePlan, TuningData, rank_resources
from dapt_operator.plan.stages.tuning import TuningRequest, fit_tuning_batch, tuning_config


def finetune_batch(inputs: StageInputs, settings: Finetuning) -> Batch:
    """Return the batch of fine-tuning.

    Raises:
        RefusedError: as `fit_batch`.
    """
    return fit_tuning_batch(inputs, _request(inputs, settings))


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
    spec, budget, request = inputs.spec, settings.budget, _request(inputs, settings)
    training = tuning_config(inputs, request, batch, model)
    data = inputs.instructions or TuningData(INSTRUCTIONS)
    return StagePlan(
        kind="finetune",
        attempt=attempt,
        candidate=candidate,
        inputs_digest=data.digest,
        config=FinetuneConfig(
            **vars(training), data_folder=data.folder, epochs=budget.epochs, total_steps=budget.steps
        ),
        resources=rank_resources(request.layout, spec, spec.stage_resources.finetune),
        signs_checkpoints=True,
    )


def _request(inputs: StageInputs, settings: Finetuning) -> TuningRequest:
    return TuningRequest(
        block="finetuning",
        settings=settings,
        layout=finetune_layout(inputs.spec, inputs.profile),
        learning_rate=learning_rate(settings.method, settings.optimizer.learning_rate),
    )
