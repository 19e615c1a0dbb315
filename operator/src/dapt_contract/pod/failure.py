"""Defines the exit codes of ranks and agents, and the causes of failure that the operator reads from them.

The codes are part of the contract (docs/troubleshooting.md). `PRECEDENCE` decides which cause counts when several ranks
or pods fail together.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, StrEnum

ALTERED_STAGE_FILE = "was altered after the run was created"
"""Part of the message of a pod whose stage.json is not the one it was started with; its exit code is `BAD_INPUT`."""
FOREIGN_KEY = "holds a signing key that the operator did not make"
"""Part of the message of a pod whose signing Secret is somebody else's; its exit code is `BAD_INPUT`."""


class ExitCode(IntEnum):
    """Names the codes that the agent exits with."""

    DONE = 0
    UNKNOWN = 1
    """A crash with no known cause; see `Cause.CRASH`."""
    BAD_INPUT = 64
    """Bad configuration or data: running again cannot help."""
    OUT_OF_MEMORY = 70
    INFRASTRUCTURE = 75
    """A lost peer, a network or storage fault, a hang."""
    FORGETTING_LIMIT = 76
    DIVERGED = 77
    """The loss or a gradient is not a number, or past the hard stop."""
    STOPPED = 143
    """Stop requested (SIGTERM); a checkpoint was written when the stage has any."""


class Cause(StrEnum):
    """Names the reasons why a run ended without success."""

    BAD_INPUT = "BadInput"
    DIVERGED = "Diverged"
    FORGETTING_LIMIT = "ForgettingLimit"
    OUT_OF_MEMORY = "OutOfMemory"
    DISRUPTION = "Disruption"
    """The node or its pod was taken away, or the local run was killed; the next run does not use a retry."""
    HANG = "Hang"
    INFRASTRUCTURE = "Infrastructure"
    STOPPED = "Stopped"
    DEADLINE = "Deadline"
    CRASH = "Crash"
    """A program error: exit code 1. It has as many retries as an infrastructure fault."""


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
"""Order of the causes; when the pods of one run fail for several causes, the first one here counts."""

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
    """Return the cause behind the exit code of one process or container; None for success."""
    if code == ExitCode.DONE:
        return None
    if oom_killed:
        return Cause.OUT_OF_MEMORY
    # Without the container's OOMKilled, a kill at the end of the grace period looks the same as the kernel's.
    if code in (137, -9):
        return Cause.INFRASTRUCTURE
    return _BY_CODE.get(code, Cause.CRASH)


def first_cause(causes: Iterable[Cause]) -> Cause | None:
    """Return the cause that counts among several; None when there is none."""
    return min(causes, key=PRECEDENCE.index, default=None)
