"""Defines the whole resource, as the API server stores it and as its schema describes it.

Apart from `spec.py`, because the status takes as long to import as the spec, and a manifest has none.
"""

from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus


class StoredAdaptation(DomainAdaptation):
    """The adaptation of a language model to a domain."""

    status: DomainAdaptationStatus | None = None
    """The observed state; only the operator writes it."""
