"""Defines baseline, which measures the frozen base model, so that every other model can be compared with it."""

from typing import Final, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from dapt_contract.base import Contract, DigestText
from dapt_contract.measure import Measure
from dapt_contract.stages.common import EvaluationConfig, ModelReference, ModelSpread, RecordedDigests


class BaselineConfig(Contract):
    """Configures the one measurement of the base model, whose items are stored for paired comparison."""

    model: ModelReference
    evaluation: EvaluationConfig
    recorded: RecordedDigests = RecordedDigests()
    """What was recorded of the weights."""
    prepared_digest: DigestText | None = None
    """`PrepareFacts.data_digest`: prepared data with another digest is refused. None: not known."""
    spread: ModelSpread = ModelSpread()
    """How the ranks divide the model."""


LARGEST_BASE_LOSS_NATS: Final = 100.0
"""Of a token; guessing among a million tokens has a loss of 14 nats."""


class BaselineFacts(Contract):
    """Holds the base model's measure. Everything is compared with it, so its losses must be numbers to divide by."""

    measure: Measure
    items_digest: DigestText = ""
    """SHA-256 of the file with the values of its items, which others are paired with; empty from before this field."""
    losses_digest: DigestText = ""
    """SHA-256 of the file with its loss on each held-out document, which others are paired with; empty from before
    this field."""

    @model_validator(mode="after")
    def _is_a_reference(self) -> Self:
        for side, measured in (("domain", self.measure.domain), ("general", self.measure.general)):
            for half in (measured.a, measured.b):
                if not 0.0 <= half.loss_nats <= LARGEST_BASE_LOSS_NATS:
                    raise PydanticCustomError(
                        "base_loss",
                        "the base model's loss on {side} text is {loss} nats a token: it must lie between 0 and {most}",
                        {"side": side, "loss": f"{half.loss_nats:g}", "most": f"{LARGEST_BASE_LOSS_NATS:g}"},
                    )
        return self


class BaselineReport(Contract):
    """Adds the path of the stored items to the facts, and what is needed to use them again."""

    facts: BaselineFacts
    items_path: str = ""
    """File of JSON lines, one for each item with the value that the model got."""
    items_digest: str = ""
    """SHA-256 of that file; empty in a report from before this field."""
    losses_path: str = ""
    """File of JSON lines, one for each held-out document with the model's loss; empty from before this field."""
    key: str = ""
    """Digest of model, data and settings: a report with the same key has the same numbers."""
    reused_from: str = ""
    """Lineage folder of the baseline that measured these results; empty when this run did."""
