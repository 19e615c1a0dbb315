"""Defines the exceptions that end a stage, each with the exit code that tells the operator whether a retry helps.

StageEnded                       ends the stage early, with an exit code, messages and perhaps facts
├── StageInterrupted             no error: the program ended early because it was asked to
│   ├── StopRequested       143  every rank learned of a SIGTERM; what can be saved was saved
│   └── ForgettingLimitReached 76  the stop rule ended pretraining
└── StageError                   an error
    ├── InputError           64  bad configuration or data; fails again with the same input
    ├── DivergedError        77  loss or gradient is not a number, or past the hard stop
    ├── StageOutOfMemoryError 70  accelerator or host memory; retried once with half the micro-batch
    └── InfrastructureError  75  a peer, the network, the disk; retried from the last checkpoint
"""

from __future__ import annotations

from collections.abc import Sequence

from dapt_contract.base import Contract
from dapt_contract.pod.failure import Cause, ExitCode


class StageEnded(Exception):  # noqa: N818 - half of the tree below it is no error
    """Ends a stage early with an exit code and one message for each problem."""

    exit_code = ExitCode.UNKNOWN
    cause = Cause.CRASH

    def __init__(self, *problems: str, facts: Contract | None = None, report: Contract | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems
        self.facts = facts
        """Facts that the operator needs although the stage did not finish: the checkpoints of pretraining."""
        self.report = report
        """The whole report, which the worker writes although the stage did not finish."""


class StageInterrupted(StageEnded):
    """Ends a stage early for a reason that is no error."""


class StopRequested(StageInterrupted):
    """Ends a stage whose pod received SIGTERM."""

    exit_code = ExitCode.STOPPED
    cause = Cause.STOPPED


class ForgettingLimitReached(StageInterrupted):
    """Ends pretraining by decision of the stop rule; the report is written."""

    exit_code = ExitCode.FORGETTING_LIMIT
    cause = Cause.FORGETTING_LIMIT


class StageError(StageEnded):
    """Ends a stage by an error."""


class InputError(StageError):
    """Reports every problem of the input, one message each: place, value, what is accepted, next step."""

    exit_code = ExitCode.BAD_INPUT
    cause = Cause.BAD_INPUT


class DivergedError(StageError):
    """Reports that loss, gradient or perplexity is not a number, or far past the limit."""

    exit_code = ExitCode.DIVERGED
    cause = Cause.DIVERGED


class StageOutOfMemoryError(StageError):
    """Reports that accelerator or host memory ran out."""

    exit_code = ExitCode.OUT_OF_MEMORY
    cause = Cause.OUT_OF_MEMORY


class InfrastructureError(StageError):
    """Reports a failure that is not the user's and that a retry may not meet again."""

    exit_code = ExitCode.INFRASTRUCTURE
    cause = Cause.INFRASTRUCTURE
