"""What two ranks of fine-tuning and of preference tuning do, and one process for comparison."""

from __future__ import annotations

import json
from pathlib import Path

from dapt_contract.stages.align import AlignConfig
from dapt_contract.stages.common import (
    DistributionConfig,
    ModelReference,
    OptimizerConfig,
    ScheduleConfig,
)
from dapt_contract.stages.finetune import FinetuneConfig
from dapt_trainer.stages import align, finetune
from support.toy_training import make_context

SHARED = {
    "model": ModelReference(weights="model"),
    "sequence_length_tokens": 64,
    "global_batch_size": 4,
    "micro_batch_size": 1,
    "optimizer": OptimizerConfig(learning_rate=1e-3),
    "schedule": ScheduleConfig(),
    "distribution": DistributionConfig(zero_stage=2, precision="fp32"),
}


def tune(work: Path, rank: int, world_size: int) -> list[list[float]]:
    """Return the curves of both stages and the rewards of the second."""
    tries = {"try_number": 3 - world_size, "rank": rank, "world_size": world_size}
    tuning = FinetuneConfig(**SHARED, total_steps=3)
    tuned = finetune.run(tuning, make_context(work, work / "scratch", tuning, kind="finetune", **tries))
    preferring = AlignConfig(**SHARED, beta=0.3, epochs=1.6)
    aligned = align.run(preferring, make_context(work, work / "scratch", preferring, kind="align", **tries))
    rewards = [aligned.facts.reward_accuracy, aligned.facts.reward_margin]
    return [
        *([point.loss_nats, point.gradient_norm or 0.0] for point in (*tuned.curve, *aligned.curve)),
        rewards,
    ]


def tune_rank(rank: int, world_size: int, work: Path) -> int:
    """Tune as one of several ranks and leave what was found in `work`; returns the exit code."""
    (work / f"found-{rank}.json").write_text(json.dumps(tune(work, rank, world_size)))
    return 0
