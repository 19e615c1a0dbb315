"""finetune: supervised fine-tuning; the loss counts response tokens alone."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.stages.common import (
    DistributionConfig,
    LoraConfig,
    ModelReference,
    OptimizerConfig,
    ScheduleConfig,
)
from dapt_contract.stages.pretrain import CurvePoint


class FinetuneConfig(Contract):
    """SFT on instructions/train.jsonl."""

    model: ModelReference
    lora: LoraConfig | None = None
    epochs: float | None = None
    total_steps: int | None = None
    """Exactly one of `epochs` and `total_steps`."""
    sequence_length_tokens: int
    global_batch_size: int
    micro_batch_size: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    distribution: DistributionConfig
    seed: int = 0


class FinetuneFacts(Contract):
    """The tuned model."""

    model: ModelReference
    weights_digest: str
    steps: int
    examples: int
    response_tokens: int
    first_loss_nats: float
    last_loss_nats: float


class FinetuneReport(Contract):
    """With the curve."""

    facts: FinetuneFacts
    curve: tuple[CurvePoint, ...] = ()
