"""dapt's regularization on the bed: built by its own builder, the Fisher information estimated once a base model."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from science.settings import Penalty
    from science.world import World

PENALTY_CODE = (
    "science.penalties",
    "dapt_trainer.training.regularization.quadratic",
    "dapt_trainer.training.regularization.kl",
    "dapt_trainer.training.regularization.fisher",
    "dapt_trainer.training.regularization.penalty",
    "dapt_trainer.training.regularization.single_process",
)
KL_ROWS = 4
"""Of 16 a step, so that its cost is near that of a quarter more compute."""
_KL_SAMPLES = 2000
_FISHER_SEED = 0
_fishers: dict[tuple[str, int], Any] = {}
_estimating = threading.Lock()


def make_penalty(world: World, penalty: Penalty, model: Any) -> Any:
    """The penalty anchored at the model's weights, which are the base model's."""
    from dapt_contract.stages.pretrain import RegularizationConfig
    from dapt_trainer.training.regularization import single_process_penalty

    config = RegularizationConfig(kind=penalty.kind, strength=penalty.strength, samples=penalty.samples)
    rows = general_rows(world, penalty.samples if penalty.kind == "ewc" else _KL_SAMPLES)
    fisher = fisher_of(world, penalty.samples) if penalty.kind == "ewc" else None
    return single_process_penalty(
        config, model, general=rows, kl_rows=KL_ROWS, fisher=fisher, seed=_FISHER_SEED
    )


def general_rows(world: World, count: int) -> list[dict[str, Any]]:
    """General training sequences [1, L], evenly over the shard."""
    from dapt_trainer.data.packing.mixture import Mixture
    from dapt_trainer.data.packing.torch_dataset import PackedDataset

    shards = [world.bed.sides["general"].shard]
    mixture = Mixture.of_shards(shards, seed=_FISHER_SEED, replay_fraction=1.0, global_batch_size=1)
    rows = PackedDataset(shards, mixture, total_steps=count, global_batch_size=1)
    return [{name: value[None] for name, value in rows[number].items()} for number in range(count)]


def fisher_of(world: World, samples: int) -> Any:
    """dapt's Fisher information at the base model, scaled to mean 1; kept in memory."""
    from dapt_trainer.training.regularization.fisher import estimate_fisher, scaled_to_mean_one

    with _estimating:
        known = (world.base_digest, samples)
        if known not in _fishers:
            model = world.model().eval()
            names = [name for name, _ in model.named_parameters()]
            rows = list(enumerate(general_rows(world, samples)))
            _fishers[known] = scaled_to_mean_one(estimate_fisher(model, rows, names, seed=_FISHER_SEED))
        return _fishers[known]
