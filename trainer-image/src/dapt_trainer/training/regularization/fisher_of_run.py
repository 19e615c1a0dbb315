"""Provides the Fisher information of a run: found on the volume, or estimated by all ranks before training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.pretrain import PretrainConfig, RegularizationConfig
from dapt_trainer.context import StageContext
from dapt_trainer.data.packing.recorded_data import read_recorded_data
from dapt_trainer.digests import size_of_folder, weights_digest
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError, StopRequested
from dapt_trainer.modeling.attention import Batch, choose_attention, use_attention
from dapt_trainer.modeling.loading.load_folder import load_model
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.modeling.written_models.tensor_folders import empty_model
from dapt_trainer.training.regularization.attach import on_device
from dapt_trainer.training.regularization.fisher import estimate_fisher, estimate_shared_fisher
from dapt_trainer.training.regularization.fisher_store import (
    FisherKey,
    StoredFisher,
    find_fisher,
    save_fisher,
)
from dapt_trainer.training.regularization.general_rows import GeneralRows, general_digest
from dapt_trainer.training.regularization.low_rank import adapted_layers
from dapt_trainer.training.regularization.penalty import penalized_names

_ACTIVITY = "measuring what general text depends on"


def measured_fisher(
    config: PretrainConfig, regularization: RegularizationConfig, context: StageContext, ranks: Ranks
) -> StoredFisher:
    """Return the Fisher information at the origin, for EWC. All ranks call it before anything else is loaded.

    It is estimated at the model that the adaptation began from, also when this attempt starts from a checkpoint: what
    general text depends on is the base model's knowledge, and that is what must not be lost.

    Raises:
        InputError: no general text, or an empty group.
        StopRequested: SIGTERM; the next run measures again.
        InfrastructureError: it could not be written.
    """
    manifest = read_recorded_data(context.work, config.prepared_digest)
    rows = GeneralRows(
        context.work, manifest, seed=config.seed, document_boundaries=config.document_boundaries
    )
    names = group_names(context.work, config, regularization)
    context.progress.update(activity="looking for a measured Fisher information")
    base_bytes = size_of_folder(context.work / config.model.origin)
    with context.keep_alive(base_bytes):
        # One rank for all: the digest reads every byte of the base model.
        key = ranks.from_first(
            lambda: _key(config, regularization, context, rows, names), TypeAdapter(FisherKey)
        )
        fisher = find_fisher(context.work, key, context.signing_key) if ranks.is_first else None
        # Rank 0 decides for all: the ranks must not disagree on whether they estimate together.
        is_stored = ranks.from_first(lambda: fisher is not None, TypeAdapter(bool))
    if not is_stored:
        _estimate(config, context, ranks, rows, names, key)
    if fisher is None:
        with context.keep_alive(base_bytes):
            fisher = find_fisher(context.work, key, context.signing_key)
    if fisher is None:
        raise InputError(
            f"{key.name} was written by another rank and cannot be read here; check the work volume"
        )
    return fisher


def group_names(work: Path, config: PretrainConfig, regularization: RegularizationConfig) -> list[str]:
    """Return the names of the base model's weights that are penalized, among those that training changes.

    With LoRA these are the weights of the adapted layers.

    Raises:
        InputError: the group is empty.
    """
    model = empty_model(work, config.model.origin)
    model_type = model.config.model_type
    if config.lora is None:
        names = [name for name, _ in model.named_parameters()]
    else:
        names = [layer.name for layer in adapted_layers(with_lora(model, config.lora, seed=config.seed))]
    return penalized_names(names, regularization.parameters, model_type=model_type)


def _key(
    config: PretrainConfig,
    regularization: RegularizationConfig,
    context: StageContext,
    rows: GeneralRows,
    names: list[str],
) -> FisherKey:
    return FisherKey(
        weights_digest=weights_digest(context.work / config.model.origin),
        general_digest=general_digest(rows.manifest),
        samples=min(regularization.samples, rows.available),
        seed=config.seed,
        group=regularization.parameters,
        names_digest=hashlib.sha256("\n".join(names).encode()).hexdigest(),
        precision=config.distribution.precision,
        document_boundaries=config.document_boundaries,
    )


def _estimate(
    config: PretrainConfig,
    context: StageContext,
    ranks: Ranks,
    rows: GeneralRows,
    names: list[str],
    key: FisherKey,
) -> None:
    """Estimate and store it: each rank takes one sequence a round, and keeps and writes the sums of its own weights."""
    context.progress.update(activity=f"{_ACTIVITY}: loading the base model")
    base_bytes = size_of_folder(context.work / config.model.origin)
    with context.keep_alive(base_bytes):
        model = load_model(
            context.work,
            ModelReference(weights=config.model.origin),
            precision=config.distribution.precision,
            device=str(ranks.device),
        )
    attention = choose_attention(
        model,
        ranks.device,
        document_boundaries=config.document_boundaries,
        precision=config.distribution.precision,
    )
    use_attention(model, attention)
    model.config.use_cache = False
    if config.distribution.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()  # transformers checkpoints activations only in training mode
        # With dropout the gradients would be those of a thinned model.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
    rounds = -(-key.samples // ranks.world_size)
    done = 0

    def rows_of_rank() -> Iterator[tuple[int | None, Batch]]:
        for first in range(0, key.samples, ranks.world_size):
            number = first + ranks.rank
            # In the last round, ranks without a sequence repeat one that does not count.
            counts = number < key.samples
            batch = attention.collate([rows.row(number if counts else first)])
            yield (number if counts else None, on_device(batch, ranks.device))

    def after_row() -> None:
        nonlocal done
        done += 1
        context.progress.update(activity=_ACTIVITY, fraction=done / rounds)
        # All ranks stop after the same round: one that left alone would leave the others waiting in a reduction.
        if ranks.sum(float(context.progress.stop_requested()))[0]:
            measured = min(key.samples, done * ranks.world_size)
            raise StopRequested(
                f"stop requested when the Fisher information was measured on {measured} of {key.samples} sequences; "
                "nothing was trained yet, and the next run measures again"
            )

    owners = _owners(model, names, ranks.world_size)
    if ranks.world_size == 1:
        alone = ((number, row) for number, row in rows_of_rank() if number is not None)
        sums = estimate_fisher(model, alone, names, seed=config.seed, after_row=after_row)
    else:
        sums = estimate_shared_fisher(
            model, rows_of_rank(), owners, seed=config.seed, rank=ranks.rank, after_row=after_row
        )
    num_weights = sum(weight.numel() for name, weight in model.named_parameters() if name in owners)
    # Freed before the training loads its own: two copies of the model might not fit.
    del model
    with context.keep_alive(base_bytes):
        (total,) = ranks.sum(float(sum(tensor.sum(dtype=torch.float64) for tensor in sums.values())))
        mean = total / num_weights
        if not mean > 0.0:
            raise InputError(
                f"the Fisher information of {len(names)} weights is {mean:g} on average: general text gives the base "
                "model no gradient there; check the model, or remove pretraining.regularization"
            )
        # To mean 1, so that a strength means the same whatever the model and the number of sequences.
        for tensor in sums.values():
            tensor.div_(mean)
        save_fisher(
            context.try_folder,
            key,
            sums,
            ranks,
            mean=mean / key.samples,
            run_key=context.stage.run.key,
            signing_key=context.signing_key,
        )
    context.progress.update(fraction=0.0)


def _owners(model: PreTrainedModel, names: list[str], world_size: int) -> dict[str, int]:
    """Return the rank that keeps each weight's sum; the largest are assigned first, each to the least loaded rank."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    loads = [0] * world_size
    owners = {}
    # By name too: every rank has to find the same owners, also among weights of one size.
    for name in sorted(names, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners
