"""Defines align: direct preference optimization (Rafailov et al. 2023), with the model it starts from as reference."""

from dapt_contract.base import Contract, Count, DigestText, Loss
from dapt_contract.layout import PREFERENCES
from dapt_contract.stages.common import ModelReference, TrainingConfig
from dapt_contract.stages.pretrain import CurvePoint


class AlignConfig(TrainingConfig):
    """Configures DPO; batches count pairs, and the model to train is also the reference."""

    data_folder: str = PREFERENCES
    """Folder of the pairs, relative to the work volume: `TuningDataConfig.folder`."""
    data_digest: str | None = None
    """First digits of the SHA-256 of the file of pairs, which is refused if it has another. None: not known."""
    beta: float
    epochs: float = 1.0


class AlignFacts(Contract):
    """Describes the aligned model and how its training went."""

    model: ModelReference
    weights_digest: DigestText
    steps: Count
    pairs: Count
    first_loss_nats: Loss
    last_loss_nats: Loss
    reward_accuracy: float
    """Share of pairs of the last tenth of the steps whose chosen answer has the larger implicit reward."""
    reward_margin: float
    """Mean difference of the implicit rewards of those pairs, chosen minus rejected."""
    cut_pairs: Count = 0
    """How many of `pairs` lost the end of an answer, because it lies past the sequence length."""
    dropped_pairs: Count = 0
    """Pairs that were left out, because the prompt leaves no space for an answer; not counted in `pairs`."""
    equal_pairs: Count = 0
    """Pairs that were left out, because their answers are equal once they are cut; not counted in `pairs`."""


class AlignReport(Contract):
    """Adds the loss curve to the facts."""

    facts: AlignFacts
    curve: tuple[CurvePoint, ...] = ()
