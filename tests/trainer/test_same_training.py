"""Tests that a checkpoint belongs to its training however the ranks shared the model when it was written."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.checkpoint import CheckpointManifest
from dapt_contract.envelope import digest_of
from dapt_contract.stages.common import CHECKING_FIELDS, DistributionConfig
from dapt_trainer.checkpoints.same_training import (
    NEUTRAL_FIELDS,
    distribution_to_resume,
    problem_of_sharing,
    training_digest,
    zero_stages_by_digest,
)
from support.toy_training import pretrain_config


def shared(**distribution: Any) -> Any:
    return pretrain_config(distribution=DistributionConfig(**distribution))


def written_by(config: Any, world_size: int = 8) -> CheckpointManifest:
    return CheckpointManifest(
        folder="stages/pretrain-a1/try-1/checkpoint-2",
        candidate="a1-s2",
        step=2,
        tokens=1,
        world_size=world_size,
        fence=1,
        lineage="pretrain-a1",
        config_digest=training_digest(config),
        weights_digest="w",
        files=(),
    )


def test_digest_of_a_training_is_that_of_versions_without_shared_sequences() -> None:
    config = shared(zero_stage=1)
    fields = config.model_dump(mode="json", exclude={*NEUTRAL_FIELDS, *CHECKING_FIELDS})
    del fields["distribution"]["sequence_parallel"]
    assert training_digest(config) == digest_of(fields)
    assert training_digest(shared(zero_stage=1, sequence_parallel=4)) == digest_of(fields)


@pytest.mark.parametrize(
    ("written", "configured", "resumed"),
    [
        ({"zero_stage": 2}, {"zero_stage": 1}, 1),
        ({"zero_stage": 1, "gradient_checkpointing": True}, {"zero_stage": 2}, 2),
        ({"zero_stage": 3}, {"zero_stage": 1}, 3),
        ({"zero_stage": 2}, {"zero_stage": 3}, 2),
    ],
)
def test_checkpoint_of_another_estimate_is_continued_on_as_many_ranks(
    written: dict[str, Any], configured: dict[str, Any], resumed: int
) -> None:
    config, manifest = shared(**configured), written_by(shared(**written))
    assert manifest.config_digest in zero_stages_by_digest(config)
    assert distribution_to_resume(config, manifest, 8) == DistributionConfig(zero_stage=resumed)


def test_checkpoint_that_other_ranks_cannot_read_is_not_continued() -> None:
    config, manifest = shared(zero_stage=1), written_by(shared(zero_stage=3))
    assert distribution_to_resume(config, manifest, 4) is None
    assert problem_of_sharing(config, manifest, 4) == (
        "ZeRO 3 on 8 ranks has written it, and ZeRO 1 on 4 cannot read it; set pretraining.distribution.zeroStage, or"
        " train on as many ranks as before"
    )
    assert problem_of_sharing(config, manifest, 8) is None


@pytest.mark.parametrize("change", [{"offload": "optimizer"}, {"precision": "fp32"}])
def test_checkpoint_of_another_precision_or_offloading_is_not_of_this_training(
    change: dict[str, Any],
) -> None:
    assert training_digest(shared(**change)) not in zero_stages_by_digest(shared())
