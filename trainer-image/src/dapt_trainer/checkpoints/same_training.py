"""Knows a training again in its checkpoints, however its ranks shared the model when they were written.

How the ranks share a model is chosen by an estimate, and another version of the operator, or other ranks, may choose
otherwise. A training that restarts then continues: the weights are the same, and the optimizer's state is read in the
way in which it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from dapt_contract.checkpoint import CheckpointManifest
from dapt_contract.envelope import digest_of
from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import CHECKING_FIELDS, LAYOUT_FIELDS, DistributionConfig, ZeroStage
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_contract.stages.pretrain import PretrainConfig

TrainingConfig = PretrainConfig | FinetuneConfig | AlignConfig
NEUTRAL_FIELDS = frozenset(
    {"micro_batch_size", "stop_rule", "base_general_perplexity", "max_train_seconds", "keep_optimizer_states"}
)
"""Fields of the configuration that do not change what is trained: a retry with half the micro-batch after an
out-of-memory, or one with new gates, continues from the same checkpoints."""
_ALIKE: frozenset[ZeroStage] = frozenset({1, 2})
"""ZeRO stages that write and read the same files."""


def training_digest(config: TrainingConfig) -> str:
    """Return the digest of everything in the configuration that decides the weights, and of the ways to share them."""
    fields = config.model_dump(mode="json", exclude={*NEUTRAL_FIELDS, *CHECKING_FIELDS})
    fields["distribution"] = config.distribution.model_dump(mode="json", exclude=set(LAYOUT_FIELDS))
    return digest_of(fields)


def zero_stages_by_digest(config: TrainingConfig) -> Mapping[str, ZeroStage]:
    """Return the digests of the same training with any ZeRO stage, with and without recomputed activations."""
    stages: tuple[ZeroStage, ...] = get_args(ZeroStage)
    return {
        training_digest(config.with_distribution(_shared(config, stage, recomputes))): stage
        for stage in stages
        for recomputes in (False, True)
    }


def distribution_to_resume(
    config: TrainingConfig, manifest: CheckpointManifest, world_size: int
) -> DistributionConfig | None:
    """Return how these ranks share the model when they continue from a checkpoint; None where they cannot.

    As configured where that reads the checkpoint's files; else as it was written, which fits the same number of ranks,
    since they have trained so before.
    """
    written = zero_stages_by_digest(config)[manifest.config_digest]
    configured = config.distribution.zero_stage
    if written == configured or {written, configured} <= _ALIKE:
        return config.distribution
    if manifest.world_size != world_size:
        return None
    return _shared(config, written, config.distribution.gradient_checkpointing)


def problem_of_sharing(config: TrainingConfig, manifest: CheckpointManifest, world_size: int) -> str | None:
    """Return why these ranks cannot continue from a checkpoint of this training; None when they can."""
    if distribution_to_resume(config, manifest, world_size) is not None:
        return None
    return (
        f"ZeRO {zero_stages_by_digest(config)[manifest.config_digest]} on {manifest.world_size} ranks has written it,"
        f" and ZeRO {config.distribution.zero_stage} on {world_size} cannot read it; set"
        " pretraining.distribution.zeroStage, or train on as many ranks as before"
    )


def _shared(config: TrainingConfig, zero_stage: ZeroStage, recomputes: bool) -> DistributionConfig:
    changes = {"zero_stage": zero_stage, "gradient_checkpointing": recomputes}
    return DistributionConfig.model_validate(config.distribution.__dict__ | changes)
