"""Writes the facts of a stage into its record, and reads them back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from dapt_contract.base import Contract, compact_numbers
from dapt_contract.stages import KINDS
from dapt_operator.remembered import remembered

_CACHED_FACTS: Final = 256


def compact_facts(facts: Contract) -> dict[str, object]:
    """Return facts as a termination message spells them: what was read from one comes out unchanged."""
    values: dict[str, object] = facts.model_dump(
        mode="json", exclude_none=True, exclude_defaults=True, context={"compact": True}
    )
    # Infinity and "not a number" become words: the API server refuses a status with such a number, at every write.
    return {name: compact_numbers(value) for name, value in values.items()}


# By the identity of the facts: a ledger that is read once is asked for them at every reconcile.
@remembered(_CACHED_FACTS)
def parse_facts(kind: str, facts: Mapping[str, object]) -> Contract | None:
    """Return facts as the model of a kind of stage that this version knows; None when they do not fit it."""
    try:
        return KINDS[kind].facts.model_validate(facts)
    except ValidationError:
        return None
