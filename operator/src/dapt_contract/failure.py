"""Exit codes and causes of failure: what a rank, an agent and a pod say when they end.

The codes are part of the contract (docs/troubleshooting.md); their order of precedence decides which cause
counts when several ranks or pods fail together.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum

ALTERED = "was altered after the run was created"
"""In the sentence of a pod whose stage.json is not the one it was started with; its exit code is `BAD_INPUT`."""


class ExitCode(IntEnum):
    """What the agent exits with."""

    DONE = 0
    UNKNOWN = 1
    """A crash with no known cause; treated as infrastructure once, see `Cause.CRASH`."""
    BAD_INPUT = 64
    """Bad configuration or data: running again cannot help."""
    OUT_OF_MEMORY = 70
    INFRASTRUCTURE = 75
    """A lost peer, a network or storage fault, a hang."""
    FORGETTING_LIMIT = 76
    DIVERGED = 77
    """The loss or a gradient is not a number, or past the hard stop."""
    STOPPED = 143
    """Asked to stop (SIGTERM); a checkpoint was written when the stage has any."""


class Cause(StrEnum):
    """Why a run ended without success."""

    BAD_INPUT = "BadInput"
    DIVERGED = "Diverged"
    FORGETTING_LIMIT = "ForgettingLimit"
    OUT_OF_MEMORY = "OutOfMemory"
    DISRUPTION = "Disruption"
    """The node or its pod was taken away, or the local run was killed: costs no retry."""
    HANG = "Hang"
    INFRASTRUCTURE = "Infrastructure"
    STOPPED = "Stopped"
    DEADLINE = "Deadline"
    CRASH = "Crash"
    """A program error: exit code 1. Has the budget of infrastructure faults."""


PRECEDENCE: tuple[Cause, ...] = (
    Cause.BAD_INPUT,
    Cause.DIVERGED,
    Cause.FORGETTING_LIMIT,
    Cause.OUT_OF_MEMORY,
    Cause.DISRUPTION,
    Cause.HANG,
    Cause.INFRASTRUCTURE,
    Cause.STOPPED,
    Cause.DEADLINE,
    Cause.CRASH,
)
"""Of several causes in one gang the first one here counts."""

_BY_CODE: dict[int, Cause] = {
    ExitCode.BAD_INPUT: Cause.BAD_INPUT,
    ExitCode.DIVERGED: Cause.DIVERGED,
    ExitCode.FORGETTING_LIMIT: Cause.FORGETTING_LIMIT,
    ExitCode.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    ExitCode.INFRASTRUCTURE: Cause.INFRASTRUCTURE,
    ExitCode.STOPPED: Cause.STOPPED,
    ExitCode.UNKNOWN: Cause.CRASH,
}


def cause_of_exit_code(code: int, *, oom_killed: bool = False) -> Cause | None:
    """The cause behind one process' or container's exit code; None for success.

    A bare 137 is infrastructure: a kill at the end of the grace period looks the same as the kernel's.
    """
    if code == ExitCode.DONE:
        return None
    if oom_killed:
        return Cause.OUT_OF_MEMORY
    if code in (137, -9):
        return Cause.INFRASTRUCTURE
    return _BY_CODE.get(code, Cause.CRASH)


def first_cause(causes: Iterable[Cause]) -> Cause | None:
    """The cause that counts among several; None when there is none."""
    return min(causes, key=PRECEDENCE.index, default=None)
