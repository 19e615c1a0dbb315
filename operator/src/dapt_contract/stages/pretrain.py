"""pretrain: continued pre-training with checkpoints, both perplexities at each, and the stop rule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dapt_contract.base import Contract, Row
from dapt_contract.stages.common import (
    DistributionConfig,
    LoraConfig,
    ModelReference,
    OptimizerConfig,
    ScheduleConfig,
)
from dapt_contract.stop_rule import StopRule

EndedBy = Literal["Completed", "ForgettingLimit", "Diverged", "BudgetReached", "Stopped"]


class PretrainConfig(Contract):
    """All that pretraining needs to know; the mixture is computed from it and the shards' manifest."""

    model: ModelReference
    lora: LoraConfig | None = None
    """None: all weights are trained."""
    total_steps: int = Field(ge=1)
    checkpoint_steps: tuple[int, ...] = Field(max_length=50)
    """Steps after which a checkpoint is written; the last is `total_steps`."""
    sequence_length_tokens: int
    document_boundaries: bool = True
    global_batch_size: int
    """Sequences an optimizer step over all ranks."""
    micro_batch_size: int
    """Sequences a rank and forward pass; accumulation = global / (micro x world size), exactly."""
    replay_fraction: float = Field(ge=0.0, le=1.0)
    """Share of general tokens, exact in tokens over every few batches."""
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    distribution: DistributionConfig
    stop_rule: StopRule
    base_general_perplexity: float
    """The frozen base model's, on both halves of the general held-out text."""
    evaluation_context_length_tokens: int
    max_train_seconds: float | None = None
    """Pretraining's share of the GPU-hour limit on the clock: reaching it ends the stage cleanly."""
    keep_optimizer_states: int = 2
    seed: int = 0


class CheckpointFacts(Row):
    """One row of the table of checkpoints; losses in nats a base-tokenizer token, by side and half."""

    step: int
    try_number: int
    """The try below whose folder it lies: `stages/LINEAGE/try-N/checkpoint-STEP`."""
    domain_a_nats: float
    domain_b_nats: float
    general_a_nats: float
    general_b_nats: float
    weights_digest: str = Field(max_length=12)
    """First 12 hexadecimal digits."""


class PretrainFacts(Contract):
    """What gates and selection read."""

    ended_by: EndedBy
    message: str = Field(default="", max_length=160)
    """Why it ended, when not by its own plan."""
    steps: int
    tokens: int
    checkpoints: tuple[CheckpointFacts, ...] = Field(max_length=50)
    tokens_per_second: float = 0.0
    step_seconds_median: float = 0.0
    peak_memory_bytes: int = 0
    """Largest of any rank: accelerator memory, or resident memory on CPU."""


class CurvePoint(Contract):
    """One logged step."""

    step: int
    loss_nats: float
    learning_rate: float
    gradient_norm: float | None = None
    tokens: int = 0
    seconds: float = 0.0


class PretrainReport(Contract):
    """With the whole curve and what each source contributed."""

    facts: PretrainFacts
    curve: tuple[CurvePoint, ...] = ()
    tokens_by_source: tuple[tuple[str, int], ...] = ()
    epochs_by_source: tuple[tuple[str, float], ...] = ()
    realised_replay_fraction: float = 0.0
    skipped_checkpoints: tuple[str, ...] = ()
    """One sentence for each checkpoint that was found damaged at a resume."""
