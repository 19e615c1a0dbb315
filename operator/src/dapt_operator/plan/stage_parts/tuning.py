"""What fine-tuning and preference tuning share: their batch, and how they train it."""

from __future__ import annotations

from dapt_contract.stages.common import ModelReference, TrainingConfig
from dapt_operator.plan.sizing.grown_tokenizer import grown_model
from dapt_operator.plan.sizing.model_fit.batch import Batch, MemoryRule
from dapt_operator.plan.sizing.tuning import TuningRequest, tuning_sequence_length
from dapt_operator.plan.sizing.tuning_estimate import UNKNOWN_SIZE, TuningSize
from dapt_operator.plan.stage_parts import common
from dapt_operator.plan.stage_parts.stage_plan import StageInputs, TuningData


def fit_tuning_batch(
    inputs: StageInputs, request: TuningRequest, data: TuningData | None, memory_rule: MemoryRule
) -> Batch:
    """Return the batch of a tuning stage.

    Raises:
        RefusedError: as `fit_batch`.
    """
    spec, prepared = inputs.spec, inputs.prepared
    return request.fit(
        spec,
        inputs.profile,
        grown_model(prepared.model, spec, prepared.tokenizer),
        records=num_records(data),
        sequence_length_tokens=_sequence_length(inputs),
        memory_rule=memory_rule,
    )


def num_records(data: TuningData | None) -> int | None:
    """Return how many examples or pairs there are; None where that was not counted."""
    return data.facts.records if data is not None and data.facts is not None else None


def prepared_size(data: TuningData | None) -> TuningSize:
    """Return how much data there is, as prepare has counted it."""
    if data is None or data.facts is None:
        return UNKNOWN_SIZE
    return TuningSize(records=data.facts.records, tokens=data.facts.tokens)


def tuning_config(
    inputs: StageInputs, request: TuningRequest, batch: Batch, model: ModelReference
) -> TrainingConfig:
    """Return what both stages configure alike."""
    spec, settings = inputs.spec, request.settings
    return TrainingConfig(
        model=model,
        lora=request.lora,
        sequence_length_tokens=_sequence_length(inputs),
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        optimizer=common.optimizer(settings.optimizer, request.learning_rate),
        schedule=common.schedule(settings.schedule),
        distribution=common.distribution(batch),
        seed=spec.seed,
    )


def _sequence_length(inputs: StageInputs) -> int:
    prepared = inputs.prepared
    return tuning_sequence_length(inputs.spec, prepared.sequence_length_tokens, prepared.model.max_positions)
