"""Defines blend, which makes averages and interpolations and measures them in one run, to be ranked like checkpoints.

Each blend is written down as an ordinary model folder before it is measured. The folders of the best stay, because
selection may take them; the others are removed after their reading. A blend without a folder that is needed later is
made again from its recipe, by the stage that needs it.
"""

from collections.abc import Iterable
from typing import Final

from pydantic import Field

from dapt_contract.base import Contract, DigestText, Loss, PositiveCount, Row
from dapt_contract.layout import BLENDS, stage_folder
from dapt_contract.measure import RowError
from dapt_contract.stages.common import ModelReference, ModelSpread, RecordedDigests

MAX_BLENDS: Final = 30
"""Blends that one run measures at most."""


class Blend(Contract):
    """Defines one candidate that is made of others."""

    candidate: str = Field(max_length=40)
    """Id of the candidate, for example `a1-s4560-i0.8` or `a1-avg3`."""
    model: ModelReference


class KeepRule(Contract):
    """Says which blends stay on the volume: those that selection would judge first."""

    most: int = Field(default=0, ge=0, le=MAX_BLENDS)
    """Number of blends that stay."""
    general_limit_a_nats: float = 0.0
    """Largest general loss on half A with which a blend stays: the gate of general perplexity."""

    def kept(self, rows: "Iterable[BlendRow]") -> frozenset[str]:
        """Return the candidates that stay: of those within the limit the ones with the lowest domain loss on half A.

        A loss that is no number is over every limit.
        """
        passing = [row for row in rows if row.general_a_nats <= self.general_limit_a_nats]
        finite = [row for row in passing if row.domain_a_nats < float("inf")]
        # With the id, so that equal losses give the same blends in every run.
        ranked = sorted(finite, key=lambda row: (row.domain_a_nats, row.candidate))
        return frozenset(row.candidate for row in ranked[: self.most])


class BlendConfig(Contract):
    """Lists the blends whose two perplexities are measured."""

    blends: tuple[Blend, ...] = Field(max_length=MAX_BLENDS)
    context_length_tokens: int
    recorded: RecordedDigests = RecordedDigests()
    """What was recorded of the weights."""
    prepared_digest: DigestText | None = None
    """`PrepareFacts.data_digest`: prepared data with another digest is refused. None: not known."""
    spread: ModelSpread = ModelSpread()
    """How the ranks divide the model."""
    keeps: KeepRule = KeepRule()
    """Which blends stay on the volume."""
    base_losses_digest: DigestText | None = None
    """SHA-256 of the base model's losses by document, which each blend's are paired with. None: it has none."""


class BlendRow(Row):
    """Holds one row of the table: losses in nats a base-tokenizer token, by side and half."""

    candidate: str = Field(max_length=40)
    domain_a_nats: Loss
    domain_b_nats: Loss
    general_a_nats: Loss
    general_b_nats: Loss
    weights_digest: str = Field(max_length=12)
    """First 12 hexadecimal digits of the digest: of the folder where there is one, else of the recipe."""
    try_number: PositiveCount | None = None
    """Run below whose folder the blend lies as an ordinary model (`blend_folder`). None: it was removed."""
    domain_b_error: RowError | None = None
    general_b_error: RowError | None = None

    def without_folder(self, recipe_digest: str) -> "BlendRow":
        """Return the row of a blend whose folder is removed."""
        return BlendRow.model_validate(self.__dict__ | {"weights_digest": recipe_digest, "try_number": None})


def blend_folder(row: BlendRow, attempt: int, round_name: str | None) -> str | None:
    """Return the folder of a measured blend, relative to the work volume; None where it was removed.

    Args:
        row: of the blend.
        attempt: whose blend it is.
        round_name: of the run, where it is a further one of the attempt.
    """
    if row.try_number is None:
        return None
    return f"{stage_folder('blend', attempt, round_name)}/try-{row.try_number}/{BLENDS}/{row.candidate}"


class BlendFacts(Contract):
    """Holds the rows that selection reads."""

    rows: tuple[BlendRow, ...] = Field(max_length=MAX_BLENDS)


class BlendReport(Contract):
    """Holds the facts; there is nothing more to report."""

    facts: BlendFacts
