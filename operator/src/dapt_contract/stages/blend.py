"""Defines blend, which measures averages and interpolations in one run, so that they are ranked like checkpoints."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from dapt_contract.base import Contract, DigestText, Loss, Row
from dapt_contract.stages.common import ModelReference, ModelSpread, RecordedDigests

MAX_BLENDS: Final = 30
"""Blends that one run measures at most."""


class Blend(Contract):
    """Defines one candidate that is made of others."""

    candidate: str = Field(max_length=40)
    """Id of the candidate, for example `a1-s4560-i0.8` or `a1-avg3`."""
    model: ModelReference


class BlendConfig(Contract):
    """Lists the blends whose two perplexities are measured. The stage writes its report and nothing else."""

    blends: tuple[Blend, ...] = Field(max_length=MAX_BLENDS)
    context_length_tokens: int
    recorded: RecordedDigests = RecordedDigests()
    """What was recorded of the weights."""
    prepared_digest: DigestText | None = None
    """`PrepareFacts.data_digest`: prepared data with another digest is refused. None: not known."""
    spread: ModelSpread = ModelSpread()
    """How the ranks divide the model."""


class BlendRow(Row):
    """Holds one row of the table: losses in nats a base-tokenizer token, by side and half."""

    candidate: str = Field(max_length=40)
    domain_a_nats: Loss
    domain_b_nats: Loss
    general_a_nats: Loss
    general_b_nats: Loss
    weights_digest: str = Field(max_length=12)
    """First 12 hexadecimal digits of the recipe's digest."""


class BlendFacts(Contract):
    """Holds the rows that selection reads."""

    rows: tuple[BlendRow, ...] = Field(max_length=MAX_BLENDS)


class BlendReport(Contract):
    """Holds the facts; there is nothing more to report."""

    facts: BlendFacts
