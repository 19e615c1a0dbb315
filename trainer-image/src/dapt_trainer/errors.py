"""Exceptions of the trainer, each with the exit code that tells the operator whether a retry helps.

StageError
├── InputError              64  bad configuration or data; never again with the same input
├── StopRequested          143  SIGTERM was seen by all ranks; what can be saved was saved
├── ForgettingLimitReached  76  the stop rule ended pretraining
├── Diverged                77  loss or gradient is not a number, or past the hard stop
├── OutOfMemory             70  accelerator or host memory; once more with half the micro-batch
└── InfrastructureError     75  a peer, the network, the disk; again from the last checkpoint
"""

from __future__ import annotations

from collections.abc import Sequence

from dapt_contract.base import Contract
from dapt_contract.failure import Cause, ExitCode


class StageError(Exception):
    """Ends a stage with an exit code and one sentence a problem."""

    exit_code = ExitCode.UNKNOWN
    cause = Cause.CRASH

    def __init__(self, *problems: str, facts: Contract | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems
        self.facts = facts
        """Facts that are told in spite of the failure: pretraining's checkpoints."""
        self.report: Contract | None = None
        """The whole report, written in spite of the failure."""


class InputError(StageError):
    """Every problem of the input, one sentence each: place, value, what is accepted, next step."""

    exit_code = ExitCode.BAD_INPUT
    cause = Cause.BAD_INPUT


class StopRequested(StageError):
    """The pod was asked to stop."""

    exit_code = ExitCode.STOPPED
    cause = Cause.STOPPED


class ForgettingLimitReached(StageError):
    """The stop rule said so; the report is written all the same."""

    exit_code = ExitCode.FORGETTING_LIMIT
    cause = Cause.FORGETTING_LIMIT


class DivergedError(StageError):
    """Not a number, or far past the limit."""

    exit_code = ExitCode.DIVERGED
    cause = Cause.DIVERGED


class StageOutOfMemoryError(StageError):
    """Accelerator or host memory ran out."""

    exit_code = ExitCode.OUT_OF_MEMORY
    cause = Cause.OUT_OF_MEMORY


class InfrastructureError(StageError):
    """Not the user's fault, and it may be gone the next time."""

    exit_code = ExitCode.INFRASTRUCTURE
    cause = Cause.INFRASTRUCTURE
