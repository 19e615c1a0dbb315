"""Lists what the API describes and this version does not do yet. Such a field is refused, never ignored.

There is one entry for each field, in the order of the manifest; it is removed when its behaviour is implemented.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation


@dataclass(frozen=True)
class Unsupported:
    """A field, or a value of it, that is refused.

    Attributes:
        field: full path in the manifest.
        applies: returns whether a spec uses it.
        instead: what happens today and what to do.
    """

    field: str
    applies: Callable[[Any], bool]
    instead: str


ADAPTATION: Final = (
    Unsupported(
        "spec.model.source",
        lambda spec: spec.model.source.startswith("adaptation://"),
        "the result of another adaptation is not looked up; give the address where it was published",
    ),
)
"""Refusals for a DomainAdaptation; `applies` gets its spec."""

PROFILE: Final = (
    Unsupported(
        "spec.tracking",
        lambda spec: spec.tracking is not None,
        "curves are in the metrics and in the report; remove the field",
    ),
)
"""Refusals for an AdaptationProfile; `applies` gets its spec."""


def find_unsupported(document: DomainAdaptation | AdaptationProfile) -> tuple[Unsupported, ...]:
    """Return the entries that apply to this document, in the order of the manifest."""
    table = ADAPTATION if isinstance(document, DomainAdaptation) else PROFILE
    return tuple(entry for entry in table if entry.applies(document.spec))


def unsupported_messages(document: DomainAdaptation | AdaptationProfile) -> tuple[str, ...]:
    """Return a sentence for each field that this version does not support; empty when it supports all of them."""
    return tuple(f"not supported yet: {entry.field}; {entry.instead}" for entry in find_unsupported(document))
