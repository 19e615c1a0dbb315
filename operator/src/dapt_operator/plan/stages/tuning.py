"""What fine-tuning and preference tuning share: the length of their sequences, their batch and how they train it."""

from __future__ import annotations

from dataclasses import dataclass

from dapt_contract.stages.common import ModelReference, TrainingConfig
from dapt_contract.stages.prepare import PrepareFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.spec_training import Finetuning, Preference
from dapt_operator.plan.sizing.batch import Batch, BatchRequest, TrainingBlock, fit_batch
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.resolve import RankLayout, lora_config
from dapt_operator.plan.stages import common
from dapt_operator.plan.stages.stage_plan import StageInputs


@dataclass(frozen=True)
class TuningRequest:
    """One of the two tuning stages, as its block of the spec asks for it."""

    block: TrainingBlock
    settings: Finetuning | Preference
    layout: RankLayout
    learning_rate: float
    sequences_per_unit: int = 1
    """Sequences that one unit of the batch holds."""


def fit_tuning_batch(inputs: StageInputs, request: TuningRequest) -> Batch:
    """Return the batch of a tuning stage.

    Raises:
        RefusedError: as `fit_batch`.
    """
    spec, prepared, settings = inputs.spec, inputs.prepared, request.settings
    return fit_batch(
        BatchRequest(
            block=request.block,
            layout=request.layout,
            model=grown_model(prepared.model, spec, prepared.tokenizer),
            lora=lora_config(settings.method),
            global_batch_size=settings.global_batch_size or _default_batch_size(spec, request),
            micro_batch_size=settings.micro_batch_size,
            sequence_length_tokens=_sequence_length(spec, prepared),
            sequences_per_unit=request.sequences_per_unit,
        ),
        spec,
        inputs.profile,
    )


def tuning_config(
    inputs: StageInputs, request: TuningRequest, batch: Batch, model: ModelReference
) -> TrainingConfig:
    """Return what both stages configure alike."""
    spec, settings = inputs.spec, request.settings
    return TrainingConfig(
        model=model,
        lora=lora_config(settings.method),
        sequence_length_tokens=_sequence_length(spec, inputs.prepared),
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        optimizer=common.optimizer(settings.optimizer, request.learning_rate),
        schedule=common.schedule(settings.schedule),
        distribution=common.distribution(batch),
        seed=spec.seed,
    )


def _sequence_length(spec: DomainAdaptationSpec, prepared: PrepareFacts) -> int:
    """Return fine-tuning's length, which preference tuning follows; by default what prepare packed."""
    requested = spec.finetuning.sequence_length if spec.finetuning is not None else None
    return min(requested or prepared.sequence_length_tokens, prepared.model.max_positions)


def _default_batch_size(spec: DomainAdaptationSpec, request: TuningRequest) -> int:
    """Return the largest batch, up to pretraining's, that these ranks can share; at least one micro-batch a rank."""
    shared_by = request.layout.world_size * (request.settings.micro_batch_size or 1)
    return max(1, spec.pretraining.global_batch_size // shared_by) * shared_by
