"""Defines destination, a short run that tries where the model will be published before anything is paid for."""

from typing import Literal

from dapt_contract.base import Contract, PathText


class DestinationConfig(Contract):
    """Configures the trial of one destination."""

    destination: str
    run_digest: str
    """Digest of everything that decides the model: a destination that holds a result of the same digest is ours."""


class DestinationFacts(Contract):
    """Says what was found there, after a probe object was written and removed with the write credentials."""

    destination: PathText
    found: Literal["empty", "ours"]


class DestinationReport(Contract):
    """Holds the facts; there is nothing more to report."""

    facts: DestinationFacts
