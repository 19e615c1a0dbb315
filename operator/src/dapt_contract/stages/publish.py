"""Defines publish, the only stage that writes outside the work volume."""

from dapt_contract.base import Contract, Count, DigestText, PathText
from dapt_contract.measure import Measure
from dapt_contract.stages.common import ModelReference, RecordedDigests
from dapt_contract.stages.tuning_data import TuningKind


class LearnedData(Contract):
    """Names the data that fine-tuning or preference tuning learned from."""

    kind: TuningKind
    sources: tuple[str, ...]
    """As the manifest has them."""
    records: int | None = None
    """Examples or pairs that were prepared; None: not counted."""
    digest: str | None = None
    """First digits of the SHA-256 of the prepared records; None: not known."""


class CardFacts(Contract):
    """Holds the facts that the model card is written from; the card has no other content."""

    adaptation: str
    base_model: str
    base_revision: str
    method: str
    learning_rate: float
    replay_fraction: float
    training_tokens: int
    domain_sources: tuple[str, ...]
    general_sources: tuple[str, ...]
    candidate: str
    selection_reason: str
    fine_tuned: bool
    sft_examples: int | None = None
    """Texts that fine-tuning learned from; None without it."""
    dpo_pairs: int | None = None
    """Pairs that preference tuning learned from; None without it."""
    dpo_beta: float | None = None
    tuning_data: tuple[LearnedData, ...] = ()
    """What fine-tuning and preference tuning learned from."""
    license: str | None = None
    """Licence of the published model by `output.license`; None: the base model's."""
    language: tuple[str, ...] = ()
    """Languages by `output.language`; empty: the base model's."""
    context_length_tokens: int | None = None
    """Longest context that the perplexities were measured with."""
    base: Measure
    chosen: Measure
    final: Measure | None = None
    warnings: tuple[str, ...] = ()


class AdapterForm(Contract):
    """Asks for one PEFT adapter on the base model instead of a merged model."""

    recipe: ModelReference
    """The published model by adapters alone, where the model itself may be a blend that was written down as weights."""


class PublishConfig(Contract):
    """Configures what is published: the model to merge and save, its card, and the destination."""

    model: ModelReference
    recorded: RecordedDigests = RecordedDigests()
    """What was recorded of the weights, by verify above all: publish computes their digests itself."""
    adapter: AdapterForm | None = None
    """None: the merged model is published."""
    destination: str
    run_digest: str
    """Digest of everything that decides the model; the destination's manifest holds it too."""
    model_card: bool = True
    card: CardFacts


class PublishFacts(Contract):
    """Describes what was written to the destination."""

    destination: PathText
    digest: DigestText
    files: Count
    size_bytes: Count


class PublishReport(Contract):
    """Holds the facts; there is nothing more to report."""

    facts: PublishFacts
