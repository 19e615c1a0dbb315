"""Stores how each rank ended in the scratch folder, and finds the root cause among all ranks of the pod.

A rank that left no outcome was killed: only its exit status is known. Of several failures the first by the contract's
precedence counts (a bad record on rank 3 outranks the broken collectives of its peers), then the lowest rank.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dapt_contract.base import Contract
from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.pod.failure import PRECEDENCE, Cause, ExitCode, cause_of_exit_code
from dapt_trainer.linux import signal_name


class RankOutcome(Contract):
    """Describes how one rank ended."""

    rank: int
    exit_code: int = 0
    cause: Cause | None = None
    problems: tuple[str, ...] = ()
    """One message for each problem."""
    is_effect: bool = False
    """Whether a peer's failure explains it: a broken collective, or a stop that this pod did not receive."""
    facts: dict[str, object] | None = None
    """Facts of the kind of stage, from rank 0 alone; after a failure only pretraining has some: its checkpoints."""

    def as_effect(self) -> RankOutcome:
        """Return the outcome as one that a peer's failure explains."""
        return self.model_copy(update={"is_effect": True})


@dataclass(frozen=True)
class PodOutcome:
    """Describes how the whole pod ended."""

    exit_code: int
    cause: Cause | None = None
    message: str = ""
    is_effect: bool = False
    facts: Mapping[str, object] | None = None


def outcome_path(folder: Path, rank: int) -> Path:
    """Return the file of one rank's outcome."""
    return folder / f"outcome-{rank}.json"


def write_outcome(folder: Path, outcome: RankOutcome) -> None:
    """Write an outcome for the agent to read.

    Raises:
        OSError: the scratch volume is full.
    """
    write_bytes_atomically(outcome_path(folder, outcome.rank), outcome.model_dump_json().encode())


def read_outcome(folder: Path, rank: int) -> RankOutcome | None:
    """Return a rank's outcome; None when it was killed before it wrote one."""
    try:
        return RankOutcome.model_validate_json(outcome_path(folder, rank).read_bytes())
    except (OSError, ValidationError):
        return None


def killed_outcome(rank: int, status: int | None, *, oom_killed: bool) -> RankOutcome:
    """Return the outcome of a rank that wrote none.

    Args:
        rank: global rank.
        status: its exit status as `subprocess` returns it (negative: minus the signal); None: unknown.
        oom_killed: whether the kernel killed a process of this pod for memory.
    """
    if status is None:
        return RankOutcome(
            rank=rank,
            exit_code=ExitCode.INFRASTRUCTURE,
            cause=Cause.INFRASTRUCTURE,
            problems=(f"rank {rank} ended without an outcome, and its exit status is unknown",),
        )
    # For the process, a kill for memory is a SIGKILL like any other: only the cgroup's counter tells them apart.
    if status < 0 and oom_killed:
        message = f"rank {rank} was killed because the pod's memory ran out"
        return RankOutcome(
            rank=rank, exit_code=ExitCode.OUT_OF_MEMORY, cause=Cause.OUT_OF_MEMORY, problems=(message,)
        )
    if status == -signal.SIGKILL:
        return RankOutcome(
            rank=rank,
            exit_code=ExitCode.INFRASTRUCTURE,
            cause=Cause.INFRASTRUCTURE,
            problems=(f"rank {rank} was killed by SIGKILL from outside",),
        )
    if status < 0:
        message = f"rank {rank} crashed with {signal_name(-status)}; its stacks are in the log"
        return RankOutcome(rank=rank, exit_code=ExitCode.UNKNOWN, cause=Cause.CRASH, problems=(message,))
    cause = cause_of_exit_code(status)
    code = status if status in set(ExitCode) else ExitCode.UNKNOWN
    message = f"rank {rank} ended with exit code {status} and left no outcome"
    if status == 0:  # a library ended the process (os._exit) before the stage was finished
        code, cause = ExitCode.UNKNOWN, Cause.CRASH
    return RankOutcome(rank=rank, exit_code=code, cause=cause, problems=(message,))


def judge(outcomes: Sequence[RankOutcome]) -> PodOutcome:
    """Return how the pod ended, from the outcomes of all its ranks.

    Effects of a peer's failure count only where nothing else failed. After a stop request the pod succeeds if all ranks
    finished anyway.
    """
    facts = next((outcome.facts for outcome in outcomes if outcome.rank == 0), None)
    failed = [outcome for outcome in outcomes if outcome.exit_code != ExitCode.DONE]
    if not failed:
        return PodOutcome(ExitCode.DONE, facts=facts)
    # A broken collective is the echo of a peer's failure, perhaps on another pod, whose own message names the cause.
    candidates = [outcome for outcome in failed if not outcome.is_effect] or failed
    root = min(candidates, key=lambda outcome: (PRECEDENCE.index(outcome.cause or Cause.CRASH), outcome.rank))
    return PodOutcome(
        root.exit_code, root.cause or Cause.CRASH, "; ".join(root.problems), root.is_effect, facts
    )
