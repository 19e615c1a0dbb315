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


class RegularizationConfig(Contract):
    """A penalty against forgetting, added once to the loss of every optimizer step."""

    kind: Literal["ewc", "l2sp", "klToBase"]
    strength: float
    """Weight of the penalty; ewc: half of it times the squared distance to the base model, weighted by the Fisher
    information, which is scaled to mean 1; l2sp: the same without weights; klToBase: it times the divergence."""
    samples: int = 2000
    """General sequences that the Fisher information is estimated from; ewc alone reads it."""
    parameters: Literal["all", "attention", "mlp"] = "all"
    """Group of weights that is held back; klToBase holds predictions, not weights."""


class MixturePhase(Contract):
    """A stretch of an earlier attempt whose data is not read again: its sources go on where it left them.

    It had the same seed and the same global batch.
    """

    steps: int = Field(ge=0)
    replay_fraction: float = Field(ge=0.0, le=1.0)


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
    regularization: RegularizationConfig | None = None
    earlier_phases: tuple[MixturePhase, ...] = Field(default=(), max_length=16)
    """What attempts before this one read on the way to the checkpoint that this one starts from, oldest first."""
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


class PenaltyPoint(Row):
    """The regularization's share of a logged step."""

    step: int
    penalty_nats: float


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
    penalty_nats: float | None = None
    """What the regularization added to the loss; None without one. `loss_nats` is without it."""


class PretrainReport(Contract):
    """With the whole curve and what each source contributed."""

    facts: PretrainFacts
    curve: tuple[CurvePoint, ...] = ()
    tokens_by_source: tuple[tuple[str, int], ...] = ()
    """Of this attempt alone; what earlier ones read is not counted again."""
    epochs_by_source: tuple[tuple[str, float], ...] = ()
    """Of this attempt alone, as the tokens."""
    realised_replay_fraction: float = 0.0
    penalties: tuple[PenaltyPoint, ...] = ()
    """Of the regularization, where there is one: what it added to the loss."""
    stall_seconds: float = 0.0
    """Time in which the ranks saved and measured checkpoints instead of training: of this try, and of earlier ones up
    to the checkpoint that it resumed from."""
    skipped_checkpoints: tuple[str, ...] = ()
    """One sentence for each checkpoint that was found damaged at a resume."""
    attention: str = ""
    """Which implementation kept packed documents apart, and why."""
    kernels: str = ""
    """Which fused kernels were used, and why."""
