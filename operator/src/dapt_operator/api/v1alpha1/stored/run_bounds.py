"""What a record keeps of a run from its beginning and from its end."""

from __future__ import annotations

from dataclasses import dataclass

from dapt_contract.base import Contract


@dataclass(frozen=True)
class CreatedRun:
    """What a record keeps of a run from the moment the run is created."""

    number: int
    fence: int
    config_digest: str
    generation: int
    """Generation of the spec."""
    created: str | None
    profile_digest: str | None = None
    inputs_digest: str | None = None
    """Digest of what the run works on; see `RunRecord.expects`."""
    accelerators: int | None = None
    """Accelerators that the run asks for; None: not known."""
    replay_fraction: float | None = None
    """Share of general text of the first attempt, where the run shows what the status has lost."""


@dataclass(frozen=True)
class EndedRun:
    """How a run ended and what it cost."""

    completed: str
    started: str | None = None
    """None: the record keeps the start it has."""
    exit_code: int | None = None
    message: str = ""
    accelerator_seconds: float = 0.0
    held_seconds: float | None = None
    """Seconds from the first process' start to the end; None: not known, nothing is added."""
    facts: Contract | None = None
    """None: the record keeps the facts it has."""
