"""Defines evaluate, which measures one candidate and pairs its scores with the base model's items."""

from dapt_contract.base import Contract, DigestText, ShortText
from dapt_contract.measure import Measure
from dapt_contract.stages.common import EvaluationConfig, ModelReference, ModelSpread, RecordedDigests


class EvaluateConfig(Contract):
    """Configures the measurement of one candidate."""

    candidate: str
    model: ModelReference
    evaluation: EvaluationConfig
    base_items_path: str
    """Lineage folder of the baseline, relative to the work volume: its newest report names the items."""
    expected_digest: str | None = None
    """First 12 hexadecimal digits of the recipe's digest, or of its newest part's (the `weights_digest` of a row of
    checkpoints or blends); a model with another digest is not scored. None: the model is scored unchecked."""
    recorded: RecordedDigests = RecordedDigests()
    """What was recorded of the weights."""
    base_items_digest: DigestText | None = None
    """SHA-256 of the base model's items, which are refused if they have another. None: their report has it."""
    base_losses_digest: DigestText | None = None
    """SHA-256 of the base model's losses by document, which this model's are paired with. None: it has none."""
    prepared_digest: DigestText | None = None
    """`PrepareFacts.data_digest`: prepared data with another digest is refused. None: not known."""
    spread: ModelSpread = ModelSpread()
    """How the ranks divide the model."""


class EvaluateFacts(Contract):
    """Holds one candidate's measure."""

    candidate: ShortText
    measure: Measure


class EvaluateReport(Contract):
    """Adds the path of the stored items to the facts."""

    facts: EvaluateFacts
    items_path: str = ""
