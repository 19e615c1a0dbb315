"""What the API describes and this version does not do yet. Such a field is refused, never ignored.

One entry a field, in the order of the manifest; an entry goes when its behaviour arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation


@dataclass(frozen=True)
class Unsupported:
    """One refusal.

    field: full path in the manifest. applies: whether a spec asks for it. instead: what happens today and what to do.
    """

    field: str
    applies: Callable[[Any], bool]
    instead: str


ADAPTATION: Final = (
    Unsupported(
        "spec.model.source",
        lambda s: s.model.source.startswith("adaptation://"),
        "the result of another adaptation is not looked up; give the place where it was published",
    ),
    Unsupported(
        "spec.output.form",
        lambda s: s.output.form == "adapter",
        "adapters are merged into the model; write merged, or leave the field out",
    ),
)
"""Refusals for a DomainAdaptation; `applies` gets its spec."""

PROFILE: Final = (
    Unsupported(
        "spec.tracking",
        lambda s: s.tracking is not None,
        "curves are in the metrics and in the report; remove the field",
    ),
)
"""Refusals for an AdaptationProfile; `applies` gets its spec."""


def find_unsupported(document: DomainAdaptation | AdaptationProfile) -> tuple[Unsupported, ...]:
    """The entries that apply to this document, in the order of the manifest."""
    table = ADAPTATION if isinstance(document, DomainAdaptation) else PROFILE
    return tuple(entry for entry in table if entry.applies(document.spec))


def unsupported_messages(document: DomainAdaptation | AdaptationProfile) -> tuple[str, ...]:
    """One sentence for each field that this version does not support; empty when it supports all of them."""
    return tuple(f"not supported yet: {entry.field}; {entry.instead}" for entry in find_unsupported(document))
