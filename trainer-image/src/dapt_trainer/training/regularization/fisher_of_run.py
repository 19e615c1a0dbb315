"""The Fisher information of a run: found on the volume, or estimated by all ranks together before training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_trainer.context import StageContext, beating
from dapt_trainer.data.packing.data_manifest import read_manifest
from dapt_trainer.digests import weights_digest
from dapt_trainer.distributed import Ranks
from dapt_trainer.errors import InputError, StopRequested
from dapt_trainer.modeling.attention import choose_attention, use_attention
from dapt_trainer.modeling.compose import load_model
from dapt_trainer.modeling.lora import with_lora
from dapt_trainer.training.regularization.attach import on_device
from dapt_trainer.training.regularization.base_model import empty_model
from dapt_trainer.training.regularization.fisher import estimate_fisher, estimate_shared_fisher
from dapt_trainer.training.regularization.fisher_store import (
    FisherKey,
    StoredFisher,
    find_fisher,
    save_fisher,
)
from dapt_trainer.training.regularization.general_rows import GeneralRows, general_digest
from dapt_trainer.training.regularization.low_rank import adapted_layers
from dapt_trainer.training.regularization.penalty import Row, held_back

_ACTIVITY = "measuring what general text depends on"


def measured_fisher(config: PretrainConfig, context: StageContext, ranks: Ranks) -> StoredFisher:
    """The Fisher information at the origin, for EWC. Called by all ranks before anything else is loaded.

    It is estimated at the model that the adaptation began from, also when this attempt starts from a checkpoint: what
    general text depends on is the base model's knowledge, and that is what must not be lost.

    Raises:
        InputError: no general text, or an empty group.
        StopRequested: SIGTERM; the next try measures again.
        InfrastructureError: it could not be written.
    """
    asked = config.regularization
    assert asked is not None
    rows = GeneralRows(context.work, seed=config.seed, document_boundaries=config.document_boundaries)
    names = group_names(context.work, config)
    count = min(asked.samples, rows.available)
    context.progress.update(activity="looking for a measured Fisher information")
    with beating(context.progress):
        key = ranks.from_first(_key(config, context, names, count) if ranks.is_first else None)
        assert isinstance(key, FisherKey)
        found = find_fisher(context.work, key) if ranks.is_first else None
        is_there = ranks.from_first(found is not None)
    if not is_there:
        _estimate(config, context, ranks, rows, names, key)
    if found is None:
        with beating(context.progress):
            found = find_fisher(context.work, key)
    if found is None:
        raise InputError(
            f"{key.name} was written by another rank and cannot be read here; check the work volume"
        )
    return found


def group_names(work: Path, config: PretrainConfig) -> list[str]:
    """Names of the base model's weights that are held back: of those that training changes, with LoRA the adapted ones.

    Raises:
        InputError: the group is empty.
    """
    model = empty_model(work, config.model.origin)
    model_type = model.config.model_type
    if config.lora is None:
        names = [name for name, _ in model.named_parameters()]
    else:
        names = [layer.name for layer in adapted_layers(with_lora(model, config.lora, seed=config.seed))]
    assert config.regularization is not None
    return held_back(names, config.regularization.parameters, model_type=model_type)


def _key(config: PretrainConfig, context: StageContext, names: list[str], count: int) -> FisherKey:
    asked = config.regularization
    assert asked is not None
    return FisherKey(
        weights_digest=weights_digest(context.work / config.model.origin),
        general_digest=general_digest(read_manifest(context.work)),
        samples=count,
        seed=config.seed,
        group=asked.parameters,
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
    """The ranks take one sequence each a round; each keeps, scales and writes the sums of its own weights."""
    context.progress.update(activity=f"{_ACTIVITY}: loading the base model")
    model: Any = load_model(
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
        model.train()  # transformers checkpoints in training mode alone
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
    rounds = -(-key.samples // ranks.world_size)
    done = 0

    def mine() -> Iterator[tuple[int | None, Row]]:
        for first in range(0, key.samples, ranks.world_size):
            number = first + ranks.rank
            counts = number < key.samples  # the last round may have fewer sequences than ranks
            batch = attention.collate([rows.row(number if counts else first)])
            yield (number if counts else None, on_device(batch, ranks.device))

    def after_row() -> None:
        nonlocal done
        done += 1
        context.progress.update(activity=_ACTIVITY, fraction=done / rounds)
        if ranks.sum(float(context.progress.stop_requested()))[0]:
            measured = min(key.samples, done * ranks.world_size)
            raise StopRequested(
                f"asked to stop when the Fisher information was measured on {measured} of {key.samples} sequences; "
                "nothing was trained yet, and the next try measures again"
            )

    owners = _owners(model, names, ranks.world_size)
    if ranks.world_size == 1:
        alone = ((number, row) for number, row in mine() if number is not None)
        sums = estimate_fisher(model, alone, names, seed=config.seed, after_row=after_row)
    else:
        sums = estimate_shared_fisher(
            model, mine(), names, owners, seed=config.seed, rank=ranks.rank, after_row=after_row
        )
    numbers = sum(weight.numel() for name, weight in model.named_parameters() if name in owners)
    del model
    with beating(context.progress):
        (total,) = ranks.sum(float(sum(one.sum(dtype=torch.float64) for one in sums.values())))
        mean = total / numbers
        if not mean > 0.0:
            raise InputError(
                f"the Fisher information of {len(names)} weights is {mean:g} on average: general text gives the base "
                "model no gradient there; check the model, or remove pretraining.regularization"
            )
        for one in sums.values():
            one.div_(mean)
        save_fisher(
            context.try_folder, key, sums, ranks, mean=mean / key.samples, run_key=context.stage.run.key
        )
    context.progress.update(fraction=0.0)


def _owners(model: Any, names: list[str], world_size: int) -> dict[str, int]:
    """Rank that keeps each weight's sum: the largest first, each to the rank with the fewest numbers so far."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    loads = [0] * world_size
    owners = {}
    for name in sorted(names, key=lambda name: (-sizes[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += sizes[name]
    return owners
