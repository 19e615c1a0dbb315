"""From a run's configuration to the penalty of this rank, once DeepSpeed has shared out the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dapt_contract.layout import EXTENDED_MODEL
from dapt_contract.stages.common import DistributionConfig, ModelReference
from dapt_contract.stages.pretrain import PretrainConfig, RegularizationConfig
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError
from dapt_trainer.modeling.compose import DTYPES, load_model
from dapt_trainer.modeling.lora import new_rows
from dapt_trainer.tokenization.grow_model import new_token_ids
from dapt_trainer.training.regularization.base_model import base_tensors
from dapt_trainer.training.regularization.fisher_store import StoredFisher
from dapt_trainer.training.regularization.general_rows import GeneralRows
from dapt_trainer.training.regularization.kl import KlPenalty
from dapt_trainer.training.regularization.low_rank import (
    LayerTerm,
    LowRankPenalty,
    adapted_layers,
    share_of_layers,
)
from dapt_trainer.training.regularization.optimizer_slices import HeldWeight, engine_weights
from dapt_trainer.training.regularization.penalty import Penalty, Row, causal_predictions, held_back
from dapt_trainer.training.regularization.quadratic import QuadraticPenalty, Term

Collate = Callable[[Sequence[dict[str, torch.Tensor]]], dict[str, Any]]
KL_SHARE = 8
"""One general sequence for so many of the global batch; at least one."""
_KL_SEED = 0x4B4C
"""The divergence's text comes in another order than the Fisher information's."""


def require_supported(distribution: DistributionConfig) -> None:
    """Refuse what is not made.

    Raises:
        InputError: stage 3, or offload.
    """
    if distribution.zero_stage == 3 or distribution.offload != "none":
        raise InputError(
            "pretraining.regularization works with zeroStage 0, 1 and 2 and without offload, and this run has "
            f"zeroStage {distribution.zero_stage} and offload {distribution.offload}; set "
            "pretraining.distribution.zeroStage to 2 and offload to none, or remove regularization"
        )


def attached(
    config: PretrainConfig,
    work: Path,
    ranks: Ranks,
    engine: Any,
    model: Any,
    *,
    fisher: StoredFisher | None,
    backward: Callable[[torch.Tensor], None],
    collate: Collate,
) -> Penalty:
    """The penalty for a model under a DeepSpeed engine; called by all ranks.

    The anchor is the base model, also for an attempt that starts from a checkpoint: a rollback restarts the training,
    and what is to be kept is still what the base model knew.

    Args:
        config: of the run; with a regularization.
        work: root of the work volume.
        ranks: this process among its peers.
        engine: DeepSpeed's.
        model: the module in it.
        fisher: for ewc.
        backward: of a loss that is summed over ranks, as a further backward pass of the step.
        collate: rows to a batch, as the model's attention wants it.

    Raises:
        InputError: an empty group, or no general text.
    """
    asked = config.regularization
    assert asked is not None
    if asked.kind == "klToBase":
        return _kl(asked, config, work, ranks, engine, model, backward, collate)
    weights, copies = engine_weights(engine, model)
    if config.lora is None:
        return _dense(asked, config, work, model, weights, copies, fisher)
    return _low_rank(asked, config, work, ranks, model, weights, fisher)


def starts_at_origin(reference: ModelReference) -> bool:
    """Whether training starts from the base model itself."""
    return reference.is_plain and reference.weights == reference.origin


def _dense(
    asked: RegularizationConfig,
    config: PretrainConfig,
    work: Path,
    model: Any,
    weights: list[HeldWeight],
    copies: int,
    fisher: StoredFisher | None,
) -> QuadraticPenalty:
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    names = set(held_back(trained, asked.parameters, model_type=model.config.model_type))
    dtype = DTYPES[config.distribution.precision]
    base = base_tensors(work, config.model.origin)
    free = _rows_of_new_tokens(work, config.model.origin, model)
    terms = []
    for weight in weights:
        if weight.name not in names:
            continue
        device = weight.master().device
        anchor = base(weight.name)
        whole = None if fisher is None else fisher.tensor(weight.name)
        if weight.name in free:
            whole = torch.ones_like(anchor) if whole is None else whole.clone()
            whole[free[weight.name]] = 0.0

        def part(tensor: torch.Tensor, weight: HeldWeight = weight, device: Any = device) -> torch.Tensor:
            mine = tensor.reshape(-1)[weight.start : weight.start + weight.count]
            return mine.to(device=device, dtype=dtype, copy=True)

        terms.append(Term(weight, part(anchor), None if whole is None else part(whole)))
    return QuadraticPenalty(asked.strength, terms, copies=copies)


def _rows_of_new_tokens(work: Path, origin: str, model: Any) -> dict[str, list[int]]:
    """Rows that are not held back, by the names of their matrices: the base model knew nothing of new tokens."""
    ids = new_token_ids(work) if origin == EXTENDED_MODEL else ()
    return {f"{name}.weight": rows for name, rows in (new_rows(model, ids) or {}).items()}


def _low_rank(
    asked: RegularizationConfig,
    config: PretrainConfig,
    work: Path,
    ranks: Ranks,
    model: Any,
    weights: list[HeldWeight],
    fisher: StoredFisher | None,
) -> LowRankPenalty:
    layers = adapted_layers(model)
    names = set(
        held_back([layer.name for layer in layers], asked.parameters, model_type=model.config.model_type)
    )
    layers = [layer for layer in layers if layer.name in names]
    dtype = DTYPES[config.distribution.precision]
    base = None if starts_at_origin(config.model) else base_tensors(work, config.model.origin)
    terms = []
    for layer in share_of_layers(layers, ranks.rank, ranks.world_size):

        def here(tensor: torch.Tensor, device: Any = layer.weight.device) -> torch.Tensor:
            return tensor.to(device=device, dtype=dtype, copy=True)

        terms.append(
            LayerTerm(
                layer,
                None if fisher is None else here(fisher.tensor(layer.name)),
                None if base is None else here(base(layer.name)),
            )
        )
    return LowRankPenalty(asked.strength, terms, layers, weights, world_size=ranks.world_size)


def _kl(
    asked: RegularizationConfig,
    config: PretrainConfig,
    work: Path,
    ranks: Ranks,
    engine: Any,
    model: Any,
    backward: Callable[[torch.Tensor], None],
    collate: Collate,
) -> KlPenalty:
    general = GeneralRows(work, seed=config.seed ^ _KL_SEED, document_boundaries=config.document_boundaries)
    count = max(1, config.global_batch_size // KL_SHARE)
    size = min(config.micro_batch_size, -(-count // ranks.world_size))
    passes = -(-count // (ranks.world_size * size))
    base_predictions, held_bytes = _base_predictions(config, work, ranks, model)

    def rows_of_step(step: int) -> list[Row]:
        """Every rank makes as many passes as the others, since each backward pass is a meeting of all: where there
        are too few sequences the last ones are read again without labels."""
        first, end = step * count, (step + 1) * count
        batches = []
        for start in range(
            first + ranks.rank * size, first + passes * ranks.world_size * size, ranks.world_size * size
        ):
            numbers = range(start, start + size)
            rows = [general.row(min(number, end - 1)) for number in numbers]
            for number, row in zip(numbers, rows, strict=True):
                if number >= end:
                    row["labels"].fill_(-100)
            batches.append(on_device(collate(rows), ranks.device))
        return batches

    def places_of_step(step: int) -> int:
        rows = (general.row(number) for number in range(step * count, (step + 1) * count))
        return sum(int((row["labels"][1:] != -100).sum()) for row in rows)

    return KlPenalty(
        asked.strength,
        engine,
        base_predictions,
        rows_of_step,
        places_of_step,
        backward=backward,
        held_bytes=held_bytes,
    )


def _base_predictions(
    config: PretrainConfig, work: Path, ranks: Ranks, model: Any
) -> tuple[Callable[[Row], torch.Tensor], int]:
    """The base model's logits, and the memory that it takes: none with fresh adapters, which are switched off."""
    if config.lora is not None and starts_at_origin(config.model) and not config.lora.embeddings:

        def without_adapters(rows: Row) -> torch.Tensor:
            was_training = model.training
            model.eval()
            try:
                with model.disable_adapter():
                    return causal_predictions(model, rows)
            finally:
                model.train(was_training)

        return without_adapters, 0
    base = load_model(
        work,
        ModelReference(weights=config.model.origin),
        precision=config.distribution.precision,
        device=str(ranks.device),
    )
    base.set_attn_implementation(model.config._attn_implementation)
    base.requires_grad_(False)
    base.config.use_cache = False
    return lambda rows: causal_predictions(base, rows), sum(weight.nbytes for weight in base.parameters())


def on_device(batch: Mapping[str, Any], device: torch.device) -> Row:
    """The batch with its tensors there."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
