"""The state machine of an adaptation as a table.

A state is the stage that the chain has reached; it is found anew at each visit by walking the table from the first
state over what the ledger knows. A fact is the one bucket into which everything known about that stage falls. Every
pair of state and fact is in the table, as a move or as impossible with its reason; a test proves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How far the chain has come."""

    PREPARE = "Prepare"
    BASELINE = "Baseline"
    PRETRAIN = "Pretrain"
    """The newest attempt."""
    BLEND = "Blend"
    SELECT = "Select"
    EVALUATE = "Evaluate"
    FINETUNE = "Finetune"
    ALIGN = "Align"
    VERIFY = "Verify"
    PUBLISH = "Publish"
    PUBLISHED = "Published"


class Fact(StrEnum):
    """What is known about the stage of a state."""

    ABSENT = "Absent"
    """No try was made."""
    RUNNING = "Running"
    """A try is pending, running or stopping."""
    BACKOFF = "Backoff"
    """A try failed, another is due later."""
    DUE = "Due"
    """A try failed or was stopped, another is due now."""
    SUCCEEDED = "Succeeded"
    LIMIT = "Limit"
    """Pretraining was ended by the forgetting limit or by divergence."""
    EXHAUSTED = "Exhausted"
    """The last try failed and no other may follow."""
    REFUSED = "Refused"
    """The numbers rule the stage out: memory, or a batch that cannot be divided."""
    SKIPPED = "Skipped"
    """The spec does not ask for the stage."""
    CHOSEN = "Chosen"
    UNMEASURED = "Unmeasured"
    """Candidates must be evaluated first."""
    BREACHED = "Breached"
    """The gates let nothing pass."""
    RETREAT = "Retreat"
    """The newest attempt is given up and another may follow."""
    HELD = "Held"
    """A try would be due and spec.suspend holds it back."""
    STOPPING = "Stopping"
    """A try may still run and spec.suspend asks it to stop."""
    HINDERED = "Hindered"
    """A try waits for what a person must do: a Secret, a claim, an image, a quota, a changed file."""
    UNPLACED = "Unplaced"
    """A try waits for a node longer than the profile's pendingTimeoutSeconds."""
    CROWDED = "Crowded"
    """A try would be due, and a run that is not wanted any more must end first."""
    OBSTRUCTED = "Obstructed"
    """A try would be due, and one of its objects cannot be made: its name is taken, or the cluster refuses it."""
    OVERSPENT = "Overspent"
    """A try would be due and limits.gpuHours is used up."""
    SPENT = "Spent"
    """A try runs and limits.gpuHours is used up: by now its deadline is too late, since others ran beside it."""


class Do(StrEnum):
    """What a visit does in a state where the walk ends."""

    START = "Start"
    WAIT = "Wait"
    CLEAR = "Clear"
    STOP = "Stop"
    HOLD = "Hold"
    STALL = "Stall"
    FINISH = "Finish"
    ROLL_BACK = "RollBack"
    """Write down the next attempt; the visit after that starts it."""
    END = "End"
    """Finish without a model, since the budget is used up."""


@dataclass(frozen=True)
class Go:
    """The walk goes on in another state."""

    to: State


@dataclass(frozen=True)
class Impossible:
    """This pair cannot be; why."""

    why: str


Move = Go | Do | Impossible

RUN_STATES: tuple[State, ...] = (
    State.PREPARE,
    State.BASELINE,
    State.PRETRAIN,
    State.BLEND,
    State.EVALUATE,
    State.FINETUNE,
    State.ALIGN,
    State.VERIFY,
    State.PUBLISH,
)
"""States in which a stage runs."""

_ASKED = Impossible("every adaptation has this stage")
_NO_CHOICE = Impossible("only selection chooses")
_NO_RUN = Impossible("nothing runs in this state")
_ONLY_ATTEMPTS = Impossible("only pretraining and selection end an attempt")
_ONLY_PRETRAIN = Impossible("only pretraining is judged after the limit; elsewhere it is a failure")
_FIXED = Impossible("one process and no batch: no numbers can rule it out")


def _runs(succeeded: Move, **special: Move) -> dict[Fact, Move]:
    table: dict[Fact, Move] = {
        Fact.ABSENT: Do.START,
        Fact.RUNNING: Do.WAIT,
        Fact.BACKOFF: Do.WAIT,
        Fact.DUE: Do.START,
        Fact.SUCCEEDED: succeeded,
        Fact.LIMIT: _ONLY_PRETRAIN,
        Fact.EXHAUSTED: Do.STALL,
        Fact.REFUSED: _FIXED,
        Fact.SKIPPED: _ASKED,
        Fact.CHOSEN: _NO_CHOICE,
        Fact.UNMEASURED: _NO_CHOICE,
        Fact.BREACHED: _NO_CHOICE,
        Fact.RETREAT: _ONLY_ATTEMPTS,
        Fact.HELD: Do.HOLD,
        Fact.STOPPING: Do.STOP,
        Fact.HINDERED: Do.STALL,
        Fact.UNPLACED: Do.STALL,
        Fact.CROWDED: Do.CLEAR,
        Fact.OBSTRUCTED: Do.STALL,
        Fact.OVERSPENT: Do.END,
        Fact.SPENT: Do.CLEAR,
    }
    return table | {Fact[name]: move for name, move in special.items()}


def _decides(**moves: Move) -> dict[Fact, Move]:
    table: dict[Fact, Move] = dict.fromkeys(Fact, _NO_RUN)
    return table | {Fact[name]: move for name, move in moves.items()}


TABLE: dict[State, dict[Fact, Move]] = {
    State.PREPARE: _runs(Go(State.BASELINE)),
    State.BASELINE: _runs(Go(State.PRETRAIN)),
    State.PRETRAIN: _runs(Go(State.BLEND), LIMIT=Go(State.BLEND), RETREAT=Do.ROLL_BACK, REFUSED=Do.STALL),
    State.BLEND: _runs(Go(State.SELECT), SKIPPED=Go(State.SELECT)),
    State.SELECT: _decides(
        CHOSEN=Go(State.FINETUNE), UNMEASURED=Go(State.EVALUATE), BREACHED=Do.STALL, RETREAT=Do.ROLL_BACK
    ),
    State.EVALUATE: _runs(Impossible("a measured candidate is not unmeasured")),
    State.FINETUNE: _runs(Go(State.ALIGN), SKIPPED=Go(State.ALIGN), REFUSED=Do.STALL),
    State.ALIGN: _runs(Go(State.VERIFY), SKIPPED=Go(State.VERIFY), REFUSED=Do.STALL),
    State.VERIFY: _runs(Go(State.PUBLISH), BREACHED=Do.STALL),
    State.PUBLISH: _runs(Go(State.PUBLISHED)),
    State.PUBLISHED: _decides(SUCCEEDED=Do.FINISH),
}


def move(state: State, fact: Fact) -> Move:
    """The table's answer.

    Raises:
        AssertionError: the pair is impossible, so an assumption of the planner is broken.
    """
    found = TABLE[state][fact]
    if isinstance(found, Impossible):
        raise AssertionError(f"{fact} in {state}: {found.why}")
    return found
