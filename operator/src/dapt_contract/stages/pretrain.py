"""Defines pretrain: continued pre-training with checkpoints, both perplexities at each, and the stop rule."""

from collections.abc import Iterable
from typing import Final, Literal

from pydantic import Field

from dapt_contract.base import (
    MAX_ATTEMPTS,
    MAX_CHECKPOINTS,
    Amount,
    Contract,
    Count,
    DigestText,
    Loss,
    PositiveCount,
    Row,
)
from dapt_contract.measure import RowError
from dapt_contract.sentences import shortened
from dapt_contract.stages.common import KEPT_OPTIMIZER_STATES, TrainingConfig
from dapt_contract.stop_rule import StopRule

_SHORT_MESSAGE_CHARACTERS: Final = 80

EndedBy = Literal["Completed", "ForgettingLimit", "Diverged", "BudgetReached", "Stopped"]


class RegularizationConfig(Contract):
    """Configures a penalty against forgetting, which is added once to the loss of every optimizer step."""

    kind: Literal["ewc", "l2sp", "klToBase"]
    strength: float
    """Weight of the penalty; ewc: half of it times the squared distance to the base model, weighted by the Fisher
    information, which is scaled to mean 1; l2sp: the same without weights; klToBase: it times the divergence."""
    samples: int = 2000
    """General sequences that the Fisher information is estimated from; only ewc reads it."""
    parameters: Literal["all", "attention", "mlp"] = "all"
    """Group of weights that the penalty holds back; klToBase holds predictions, not weights."""


class MixturePhase(Contract):
    """Describes steps of an earlier attempt whose data is not read again: the mixture continues after them.

    The earlier attempt had the same seed and the same global batch.
    """

    steps: int = Field(ge=0)
    replay_fraction: float = Field(ge=0.0, le=1.0)


class PretrainConfig(TrainingConfig):
    """Configures pretraining; the data mixture is computed from it and the shards' manifest."""

    prepared_digest: DigestText | None = None
    """`PrepareFacts.data_digest`: prepared data with another digest is refused. None: not known."""
    total_steps: int = Field(ge=1)
    checkpoint_steps: tuple[int, ...] = Field(max_length=MAX_CHECKPOINTS)
    """Steps after which a checkpoint is written; the last is `total_steps`."""
    document_boundaries: bool = True
    replay_fraction: float = Field(ge=0.0, le=1.0)
    """Share of general tokens, exact in tokens over every few batches."""
    stop_rule: StopRule
    base_general_perplexity: float
    """Perplexity of the frozen base model on both halves of the general held-out text."""
    evaluation_context_length_tokens: int
    max_train_seconds: float | None = None
    """Pretraining's share of the GPU-hour limit as a time; reaching it ends the stage without an error."""
    keep_optimizer_states: int = KEPT_OPTIMIZER_STATES
    regularization: RegularizationConfig | None = None
    earlier_phases: tuple[MixturePhase, ...] = Field(default=(), max_length=MAX_ATTEMPTS)
    """What earlier attempts read up to the checkpoint that this one starts from, oldest first."""
    base_losses_digest: DigestText | None = None
    """SHA-256 of the base model's losses by document, which each checkpoint's are paired with. None: it has none."""


class CheckpointFacts(Row):
    """Holds one row of the table of checkpoints: losses in nats a base-tokenizer token, by side and half."""

    step: Count
    try_number: PositiveCount
    """Number of the run that wrote it: the checkpoint lies in `stages/LINEAGE/try-N/checkpoint-STEP`."""
    domain_a_nats: Loss
    domain_b_nats: Loss
    general_a_nats: Loss
    general_b_nats: Loss
    weights_digest: str = Field(max_length=12)
    """First 12 hexadecimal digits."""
    domain_b_error: RowError | None = None
    general_b_error: RowError | None = None

    @property
    def has_errors(self) -> bool:
        """Return whether the standard errors of the losses are known."""
        return self.domain_b_error is not None or self.general_b_error is not None

    def without_errors(self) -> "CheckpointFacts":
        """Return the row without standard errors."""
        return CheckpointFacts.model_validate(
            self.__dict__ | {"domain_b_error": None, "general_b_error": None}
        )


class PenaltyPoint(Row):
    """Holds what the regularization added to the loss of a logged step."""

    step: int
    penalty_nats: float


class PretrainFacts(Contract):
    """Holds what gates and selection read of a pretraining."""

    ended_by: EndedBy
    message: str = Field(default="", max_length=160)
    """Why the stage ended, unless it ran all its steps."""
    steps: Count
    tokens: Count
    checkpoints: tuple[CheckpointFacts, ...] = Field(max_length=MAX_CHECKPOINTS)
    tokens_per_second: Amount = 0.0
    step_seconds_median: Amount = 0.0
    peak_memory_bytes: Count = 0
    """Largest peak of any rank: accelerator memory, or resident memory on CPU."""
    skipped_steps: Count = 0
    """Steps whose loss or gradient was not a number: they changed no weight."""
    loss_spikes: Count = 0
    """How often the loss rose far over those before it."""

    def with_checkpoints(self, rows: Iterable[CheckpointFacts]) -> "PretrainFacts":
        """Return the facts with these checkpoints added, a later row in the place of an earlier one of the same step.

        The facts themselves when nothing changes.
        """
        by_step = {row.step: row for row in (*self.checkpoints, *rows)}
        newest = tuple(by_step[step] for step in sorted(by_step))[-MAX_CHECKPOINTS:]
        if newest == self.checkpoints:
            return self
        return PretrainFacts.model_validate({**self.__dict__, "checkpoints": newest})

    def shorter(self) -> "PretrainFacts | None":
        """Return the facts a little shorter, for a message that is full; None when nothing can be left out.

        The sentence goes first: the message has it in full. Then the standard errors of the oldest checkpoint that has
        any: a gate judges it without them.
        """
        if len(self.message) > _SHORT_MESSAGE_CHARACTERS:
            shorter = shortened(self.message, _SHORT_MESSAGE_CHARACTERS)
            return PretrainFacts.model_validate({**self.__dict__, "message": shorter})
        place = next((index for index, row in enumerate(self.checkpoints) if row.has_errors), None)
        if place is None:
            return None
        rows = list(self.checkpoints)
        rows[place] = rows[place].without_errors()
        return PretrainFacts.model_validate({**self.__dict__, "checkpoints": tuple(rows)})


class CurvePoint(Contract):
    """Holds the numbers of one logged step."""

    step: int
    loss_nats: float
    learning_rate: float
    gradient_norm: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    penalty_nats: float | None = None
    """What the regularization added to the loss; None without one. `loss_nats` is without it."""
    skipped: bool = False
    """Whether no weight was changed, because the gradient is not a number."""
    spike: bool = False
    """Whether the loss rises far over those before it at this step."""


class PretrainReport(Contract):
    """Adds the whole loss curve and the share of each source to the facts."""

    facts: PretrainFacts
    curve: tuple[CurvePoint, ...] = ()
    tokens_by_source: tuple[tuple[str, int], ...] = ()
    """Tokens read by this attempt; what earlier attempts read is not counted again."""
    epochs_by_source: tuple[tuple[str, float], ...] = ()
    """Passes over each source by this attempt alone, like the tokens."""
    realised_replay_fraction: float = 0.0
    penalties: tuple[PenaltyPoint, ...] = ()
    """What the regularization added to the loss; empty without one."""
    stall_seconds: float = 0.0
    """Time in which the ranks saved and measured checkpoints instead of training: of this run, and of earlier ones up
    to the checkpoint that it resumed from."""
    skipped_checkpoints: tuple[str, ...] = ()
    """One sentence for each checkpoint that was found damaged at a resume."""
    attention: str = ""
    """Which implementation kept packed documents apart, and why it was chosen."""
    kernels: str = ""
    """Which fused kernels were used, and why they were chosen."""
