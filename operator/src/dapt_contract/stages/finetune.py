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
    """Exactly one of `epochs` and `total_steps`; an epoch is every packed row once, so every conversation once."""
    sequence_length_tokens: int
    global_batch_size: int
    """Packed rows an optimizer step over all ranks."""
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
    """Texts that are learned from: conversations, or single turns of them where the chat template asks for that."""
    response_tokens: int
    first_loss_nats: float
    last_loss_nats: float
    cut_examples: int = 0
    """Of `examples`, those whose end lies past the sequence length."""
    dropped_examples: int = 0
    """Beside `examples`: no token of a response lies within the sequence length."""
    rows: int = 0
    """Packed rows, that is one epoch."""
    fill_fraction: float = 0.0
    """Share of the rows' positions that carry a token."""


class FinetuneReport(Contract):
    """With the curve."""

    facts: FinetuneFacts
    curve: tuple[CurvePoint, ...] = ()
