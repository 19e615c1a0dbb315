"""Builds the penalty of a run for this rank, once DeepSpeed has divided the weights among the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from dapt_contract.layout import EXTENDED_MODEL
from dapt_contract.stages.common import DistributionConfig, ModelReference
from dapt_contract.stages.pretrain import PretrainConfig, RegularizationConfig
from dapt_trainer.data.packing.recorded_data import read_recorded_data
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.attention import Batch, Collate
from dapt_trainer.modeling.labels import IGNORED_LABEL
from dapt_trainer.modeling.loading.load_folder import DTYPES, load_model
from dapt_trainer.modeling.lora import new_rows
from dapt_trainer.tokenization.grow_model import new_token_ids
from dapt_trainer.training.regularization.base_model import base_tensors
from dapt_trainer.training.regularization.fisher_store import StoredFisher
from dapt_trainer.training.regularization.general_rows import GeneralRows
from dapt_trainer.training.regularization.kl import BaseModel, GeneralBatches, KlPenalty
from dapt_trainer.training.regularization.low_rank import (
    LayerTerm,
    LowRankPenalty,
    adapted_layers,
    share_of_layers,
)
from dapt_trainer.training.regularization.optimizer_slices import OptimizerSlice, engine_weights
from dapt_trainer.training.regularization.penalty import Penalty, causal_predictions, penalized_names
from dapt_trainer.training.regularization.quadratic import QuadraticPenalty, Term

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

KL_SHARE = 8
"""The divergence is taken on one general sequence for this number of the global batch's; on at least one."""
_KL_SEED = 0x4B4C
"""Gives the divergence's text another order than the Fisher information's."""


def require_supported(distribution: DistributionConfig) -> None:
    """Refuse a distribution that penalties do not support.

    Raises:
        InputError: stage 3, offload, or ranks that share sequences.
    """
    if distribution.sequence_parallel > 1:
        raise InputError(
            "pretraining.regularization works on whole sequences, and pretraining.distribution.sequenceParallel is "
            f"{distribution.sequence_parallel}; set it to 1, or remove regularization"
        )
    if distribution.zero_stage == 3 or distribution.offload != "none":
        raise InputError(
            "pretraining.regularization works with zeroStage 0, 1 and 2 and without offload, and this run has "
            f"zeroStage {distribution.zero_stage} and offload {distribution.offload}; set "
            "pretraining.distribution.zeroStage to 2 and offload to none, or remove regularization"
        )


@dataclass(frozen=True)
class TrainedModel:
    """Holds the model that a penalty acts on, and the run that trains it."""

    config: PretrainConfig
    work: Path
    """Root of the work volume."""
    ranks: Ranks
    engine: DeepSpeedEngine
    model: PreTrainedModel | PeftModel
    """The module in the engine."""
    backward: Callable[[torch.Tensor], None]
    """Runs a further backward pass of the step, for a loss that is summed over ranks."""
    collate: Collate
    """Makes a batch of rows, as the model's attention needs it."""


def build_penalty(
    trained: TrainedModel, regularization: RegularizationConfig, fisher: StoredFisher | None
) -> Penalty:
    """Return the penalty for a model under a DeepSpeed engine; all ranks call it.

    The anchor is the base model, also for an attempt that starts from a checkpoint: a rollback restarts the training,
    and what must be kept is still the knowledge of the base model.

    Args:
        trained: the model.
        regularization: kind and strength of the penalty.
        fisher: for ewc.

    Raises:
        InputError: an empty group, or no general text.
    """
    if regularization.kind == "klToBase":
        return _kl(trained, regularization)
    weights, copies = engine_weights(trained.engine, trained.model)
    if trained.config.lora is None:
        return _dense(trained, regularization, weights, copies, fisher)
    return _low_rank(trained, regularization, weights, fisher)


def starts_at_origin(reference: ModelReference) -> bool:
    """Return whether training starts from the base model itself."""
    return reference.is_plain and reference.weights == reference.origin


def _dense(
    trained: TrainedModel,
    regularization: RegularizationConfig,
    weights: list[OptimizerSlice],
    copies: int,
    fisher: StoredFisher | None,
) -> QuadraticPenalty:
    model, origin = trained.model, trained.config.model.origin
    candidates = [name for name, weight in model.named_parameters() if weight.requires_grad]
    names = set(penalized_names(candidates, regularization.parameters, model_type=model.config.model_type))
    dtype = DTYPES[trained.config.distribution.precision]
    base = base_tensors(trained.work, origin)
    unpenalized_rows = _rows_of_new_tokens(trained.work, origin, model)
    terms = []
    for weight in weights:
        if weight.name not in names:
            continue
        anchor = base(weight.name)
        importance = None if fisher is None else fisher.tensor(weight.name)
        if weight.name in unpenalized_rows:
            # Zeroed and not cut out: a term covers a whole weight, of which the optimizer holds any slice.
            importance = torch.ones_like(anchor) if importance is None else importance.clone()
            importance[unpenalized_rows[weight.name]] = 0.0
        terms.append(
            Term(
                weight,
                _slice_of(anchor, weight, dtype),
                None if importance is None else _slice_of(importance, weight, dtype),
            )
        )
    return QuadraticPenalty(regularization.strength, terms, copies=copies)


def _slice_of(tensor: torch.Tensor, weight: OptimizerSlice, dtype: torch.dtype) -> torch.Tensor:
    """Return this rank's part of a weight's anchor or importance, on the weight's device."""
    part = tensor.reshape(-1)[weight.start : weight.start + weight.count]
    # A copy, because a view would keep the whole tensor in memory.
    return part.to(device=weight.master().device, dtype=dtype, copy=True)


def _rows_of_new_tokens(work: Path, origin: str, model: PreTrainedModel | PeftModel) -> dict[str, list[int]]:
    """Return the rows of new tokens by the names of their matrices.

    They have no anchor: the base model knew nothing of these tokens.
    """
    ids = new_token_ids(work) if origin == EXTENDED_MODEL else ()
    return {f"{name}.weight": rows for name, rows in (new_rows(model, ids) or {}).items()}


def _low_rank(
    trained: TrainedModel,
    regularization: RegularizationConfig,
    weights: list[OptimizerSlice],
    fisher: StoredFisher | None,
) -> LowRankPenalty:
    config, ranks = trained.config, trained.ranks
    layers = adapted_layers(trained.model)
    names = set(
        penalized_names(
            [layer.name for layer in layers],
            regularization.parameters,
            model_type=trained.model.config.model_type,
        )
    )
    layers = [layer for layer in layers if layer.name in names]
    dtype = DTYPES[config.distribution.precision]
    base = None if starts_at_origin(config.model) else base_tensors(trained.work, config.model.origin)
    terms = []
    for layer in share_of_layers(layers, ranks.rank, ranks.world_size):
        device = layer.weight.device
        importance = None if fisher is None else fisher.tensor(layer.name)
        anchor = None if base is None else base(layer.name)
        terms.append(
            LayerTerm(
                layer,
                None if importance is None else importance.to(device=device, dtype=dtype, copy=True),
                None if anchor is None else anchor.to(device=device, dtype=dtype, copy=True),
            )
        )
    return LowRankPenalty(regularization.strength, terms, layers, weights, world_size=ranks.world_size)


def _kl(trained: TrainedModel, regularization: RegularizationConfig) -> KlPenalty:
    config, ranks = trained.config, trained.ranks
    general = GeneralRows(
        trained.work,
        read_recorded_data(trained.work, config.prepared_digest),
        seed=config.seed ^ _KL_SEED,
        document_boundaries=config.document_boundaries,
    )
    # All that a step reads follows from its number, so that a resumed run reads what an uninterrupted one would have.
    count = max(1, config.global_batch_size // KL_SHARE)
    size = min(config.micro_batch_size, -(-count // ranks.world_size))
    passes = -(-count // (ranks.world_size * size))

    def batches_of_step(step: int) -> list[Batch]:
        # Each backward pass is a collective, so every rank makes as many passes as the others: where there are too few
        # sequences, the last ones are read again without labels.
        first, end = step * count, (step + 1) * count
        stride = ranks.world_size * size
        batches = []
        for start in range(first + ranks.rank * size, first + passes * stride, stride):
            numbers = range(start, start + size)
            rows = [general.row(min(number, end - 1)) for number in numbers]
            for number, row in zip(numbers, rows, strict=True):
                if number >= end:
                    row["labels"].fill_(IGNORED_LABEL)
            batches.append(on_device(trained.collate(rows), ranks.device))
        return batches

    def positions_of_step(step: int) -> int:
        rows = (general.row(number) for number in range(step * count, (step + 1) * count))
        return sum(int((row["labels"][1:] != IGNORED_LABEL).sum()) for row in rows)

    return KlPenalty(
        regularization.strength,
        trained.engine,
        _base_model(trained),
        GeneralBatches(batches_of_step, positions_of_step),
        backward=trained.backward,
    )


def _base_model(trained: TrainedModel) -> BaseModel:
    """Return the base model: the trained one without its adapters where that is the same, else a second copy."""
    config, model = trained.config, trained.model
    # Without its adapters the trained model is the base model only where training started from it and trains no rows.
    if config.lora is not None and starts_at_origin(config.model) and not config.lora.embeddings:

        def without_adapters(batch: Batch) -> torch.Tensor:
            # With dropout the base model's predictions would differ from one pass to the next.
            was_training = model.training
            model.eval()
            try:
                with model.disable_adapter():
                    return causal_predictions(model, batch)
            finally:
                model.train(was_training)

        return BaseModel(without_adapters)
    base = load_model(
        trained.work,
        ModelReference(weights=config.model.origin),
        precision=config.distribution.precision,
        device=str(trained.ranks.device),
    )
    # Batches are collated for the trained model's attention, so both models need the same.
    base.set_attn_implementation(model.config._attn_implementation)
    base.requires_grad_(False)
    base.config.use_cache = False
    held_bytes = sum(weight.nbytes for weight in base.parameters())
    return BaseModel(lambda batch: causal_predictions(base, batch), held_bytes)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on the device."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
