"""Defines finetune: supervised fine-tuning with a loss on response tokens alone."""

from dapt_contract.base import Contract, Count, DigestText, Fraction, Loss
from dapt_contract.layout import INSTRUCTIONS
from dapt_contract.stages.common import ModelReference, TrainingConfig
from dapt_contract.stages.pretrain import CurvePoint


class FinetuneConfig(TrainingConfig):
    """Configures SFT; batches count packed rows."""

    data_folder: str = INSTRUCTIONS
    """Folder of the examples, relative to the work volume: `TuningDataConfig.folder`."""
    data_digest: str | None = None
    """First digits of the SHA-256 of the file of examples, which is refused if it has another. None: not known."""
    epochs: float | None = None
    total_steps: int | None = None
    """Exactly one of `epochs` and `total_steps`; an epoch is every packed row once, so every conversation once."""
    minimum_rows: int = 1
    """Smallest number of rows that the conversations are spread over, at most one a conversation: small data that is
    packed into few full rows would make few optimizer steps. A batch is filled in any case."""


class FinetuneFacts(Contract):
    """Describes the tuned model and how its training went."""

    model: ModelReference
    weights_digest: DigestText
    steps: Count
    examples: Count
    """Texts that are learned from: conversations, or their single turns where the chat template requires that."""
    response_tokens: Count
    first_loss_nats: Loss
    last_loss_nats: Loss
    cut_examples: Count = 0
    """How many of `examples` lost their end, because it lies past the sequence length."""
    dropped_examples: Count = 0
    """Examples left out, because no token of a response lies within the sequence length; not counted in `examples`."""
    rows: Count = 0
    """Packed rows of one epoch."""
    fill_fraction: Fraction = 0.0
    """Share of the rows' positions that hold a token."""


class FinetuneReport(Contract):
    """Adds the loss curve to the facts."""

    facts: FinetuneFacts
    curve: tuple[CurvePoint, ...] = ()
