"""How ranks end: each leaves its outcome in the scratch folder, the agent finds the root cause among them.

A rank that leaves none was killed: its exit status is all there is. Of several failures the first by the contract's
precedence counts (a bad record on rank 3 outranks the broken collectives of its peers), then the lowest rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dapt_contract.base import Contract
from dapt_contract.envelope import write_bytes_atomically
from dapt_contract.failure import PRECEDENCE, Cause, ExitCode, cause_of_exit_code
from dapt_trainer.linux import signal_name


class RankOutcome(Contract):
    """What one rank says of its end."""

    rank: int
    exit_code: int = 0
    cause: Cause | None = None
    problems: tuple[str, ...] = ()
    """One sentence each."""
    effect: bool = False
    """What a peer's failure explains: a broken collective, a stop that nobody asked this pod for."""
    facts: dict[str, Any] | None = None
    """The kind's facts; rank 0 alone, after a failure only pretraining's checkpoints."""


@dataclass(frozen=True)
class PodOutcome:
    """How the whole pod ends."""

    exit_code: int
    cause: Cause | None = None
    sentence: str = ""
    effect: bool = False
    facts: Mapping[str, Any] | None = None


def outcome_path(folder: Path, rank: int) -> Path:
    """The file of one rank."""
    return folder / f"outcome-{rank}.json"


def write_outcome(folder: Path, outcome: RankOutcome) -> None:
    """Leave an outcome for the agent.

    Raises:
        OSError: the scratch volume is full.
    """
    write_bytes_atomically(outcome_path(folder, outcome.rank), outcome.model_dump_json().encode())


def read_outcome(folder: Path, rank: int) -> RankOutcome | None:
    """What a rank left; None when it was killed first."""
    try:
        return RankOutcome.model_validate_json(outcome_path(folder, rank).read_bytes())
    except (OSError, ValidationError):
        return None


def killed_outcome(rank: int, status: int | None, *, oom_killed: bool) -> RankOutcome:
    """The outcome of a rank that left none.

    Args:
        rank: global rank.
        status: its exit status as `subprocess` has it (negative: minus the signal); None: unknown.
        oom_killed: whether the kernel killed a process of this pod for memory.
    """
    if status is None:
        return RankOutcome(
            rank=rank,
            exit_code=ExitCode.INFRASTRUCTURE,
            cause=Cause.INFRASTRUCTURE,
            problems=(f"rank {rank} ended without a word",),
        )
    if status < 0 and (oom_killed or -status == 9):
        if oom_killed:
            sentence = f"rank {rank} was killed because the pod's memory ran out"
            return RankOutcome(
                rank=rank, exit_code=ExitCode.OUT_OF_MEMORY, cause=Cause.OUT_OF_MEMORY, problems=(sentence,)
            )
        return RankOutcome(
            rank=rank,
            exit_code=ExitCode.INFRASTRUCTURE,
            cause=Cause.INFRASTRUCTURE,
            problems=(f"rank {rank} was killed by SIGKILL from outside",),
        )
    if status < 0:
        sentence = f"rank {rank} crashed with {signal_name(-status)}; its stacks are in the log"
        return RankOutcome(rank=rank, exit_code=ExitCode.UNKNOWN, cause=Cause.CRASH, problems=(sentence,))
    cause = cause_of_exit_code(status)
    code = status if status in set(ExitCode) else ExitCode.UNKNOWN
    sentence = f"rank {rank} ended with exit code {status} and left no outcome"
    if status == 0:  # it ended before it could say how
        code, cause = ExitCode.UNKNOWN, Cause.CRASH
    return RankOutcome(rank=rank, exit_code=code, cause=cause, problems=(sentence,))


def judge(outcomes: Sequence[RankOutcome]) -> PodOutcome:
    """The verdict over all ranks of this pod: effects count only where nothing else failed.

    Asked to stop: when all ranks finished anyway that is a success, else a stop.
    """
    facts = next((outcome.facts for outcome in outcomes if outcome.rank == 0), None)
    failed = [outcome for outcome in outcomes if outcome.exit_code != ExitCode.DONE]
    if not failed:
        return PodOutcome(ExitCode.DONE, facts=facts)
    candidates = [outcome for outcome in failed if not outcome.effect] or failed
    root = min(candidates, key=lambda outcome: (PRECEDENCE.index(outcome.cause or Cause.CRASH), outcome.rank))
    return PodOutcome(root.exit_code, root.cause or Cause.CRASH, "; ".join(root.problems), root.effect, facts)
