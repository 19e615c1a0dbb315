"""blend: perplexities of averages and interpolations, many in one run, so that they are ranked like checkpoints."""

from __future__ import annotations

from pydantic import Field

from dapt_contract.base import Contract, Row
from dapt_contract.stages.common import ModelReference


class Blend(Contract):
    """One candidate that is made of others."""

    candidate: str = Field(max_length=40)
    """Its id, for example `a1-s4560-i0.8` or `a1-avg3`."""
    model: ModelReference


class BlendConfig(Contract):
    """Measure both perplexities of each; nothing is written but the report."""

    blends: tuple[Blend, ...] = Field(max_length=30)
    context_length_tokens: int


class BlendRow(Row):
    """One row of the table; losses in nats a base-tokenizer token, by side and half."""

    candidate: str = Field(max_length=40)
    domain_a_nats: float
    domain_b_nats: float
    general_a_nats: float
    general_b_nats: float
    weights_digest: str = Field(max_length=12)
    """First 12 hexadecimal digits of the recipe's digest."""


class BlendFacts(Contract):
    """What selection reads."""

    rows: tuple[BlendRow, ...] = Field(max_length=30)


class BlendReport(Contract):
    """The same, as a report."""

    facts: BlendFacts
