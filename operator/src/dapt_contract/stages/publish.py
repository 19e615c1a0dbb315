"""publish: the only stage that writes outside the work volume."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.measure import Measure
from dapt_contract.stages.common import ModelReference


class CardFacts(Contract):
    """Facts for the model card; the card says nothing else."""

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
    base: Measure
    chosen: Measure
    final: Measure | None = None
    warnings: tuple[str, ...] = ()


class PublishConfig(Contract):
    """Merge, save, describe, upload."""

    model: ModelReference
    destination: str
    run_digest: str
    """Digest of everything that decided the model; stands in the destination's manifest."""
    model_card: bool = True
    card: CardFacts


class PublishFacts(Contract):
    """What lies at the destination."""

    destination: str
    digest: str
    files: int
    size_bytes: int


class PublishReport(Contract):
    """The same, as a report."""

    facts: PublishFacts
