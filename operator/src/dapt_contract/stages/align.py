"""align: direct preference optimization (Rafailov et al. 2023) after SFT; the reference is the model it starts from."""

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


class AlignConfig(Contract):
    """DPO on preferences/train.jsonl."""

    model: ModelReference
    """Start and reference."""
    beta: float
    lora: LoraConfig | None = None
    """None: all weights are trained."""
    epochs: float = 1.0
    sequence_length_tokens: int
    global_batch_size: int
    """Pairs an optimizer step over all ranks."""
    micro_batch_size: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    distribution: DistributionConfig
    seed: int = 0


class AlignFacts(Contract):
    """The aligned model."""

    model: ModelReference
    weights_digest: str
    steps: int
    pairs: int
    first_loss_nats: float
    last_loss_nats: float
    reward_accuracy: float
    """Share of pairs of the last tenth of the steps whose chosen answer has the larger implicit reward."""
    reward_margin: float
    """Mean difference of the implicit rewards there, chosen minus rejected."""
    cut_pairs: int = 0
    """Of `pairs`, those of which an answer's end lies past the sequence length."""
    dropped_pairs: int = 0
    """Beside `pairs`: the prompt leaves no room for an answer."""


class AlignReport(Contract):
    """With the curve."""

    facts: AlignFacts
    curve: tuple[CurvePoint, ...] = ()
