"""The state machine of an adaptation as a table.

A state is the stage that the chain has reached. No state is stored: each reconcile finds it by following the table from
the first state over what the ledger knows. A fact is the one bucket into which everything known about that stage falls.
Every pair of state and fact is in the table, as a next state, as an action, or as impossible with its reason; a test
proves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """How far the chain has come."""

    DESTINATION = "Destination"
    PREPARE = "Prepare"
    BASELINE = "Baseline"
    PRETRAIN = "Pretrain"
    """The newest attempt."""
    BLEND = "Blend"
    SELECT = "Select"
    EVALUATE = "Evaluate"
    INSTRUCTIONS = "Instructions"
    """Examples that were edited after prepare had read them are read."""
    FINETUNE = "Finetune"
    PREFERENCES = "Preferences"
    """Pairs that were edited after prepare had read them are read."""
    ALIGN = "Align"
    VERIFY = "Verify"
    PUBLISH = "Publish"
    PUBLISHED = "Published"


class Fact(StrEnum):
    """What is known about the stage of a state."""

    ABSENT = "Absent"
    """It has no run yet."""
    RUNNING = "Running"
    """A run is pending, running or stopping."""
    BACKOFF = "Backoff"
    """A run failed, another is due later."""
    DUE = "Due"
    """A run failed or was stopped, another is due now."""
    SUCCEEDED = "Succeeded"
    LIMIT = "Limit"
    """Pretraining was ended by the forgetting limit or by divergence."""
    EXHAUSTED = "Exhausted"
    """The last run failed and no other may follow."""
    REFUSED = "Refused"
    """The numbers rule the stage out: memory, or a batch that cannot be divided."""
    SKIPPED = "Skipped"
    """The spec does not ask for the stage, or nothing is left for it to do."""
    CHOSEN = "Chosen"
    UNMEASURED = "Unmeasured"
    """Candidates must be evaluated first."""
    BREACHED = "Breached"
    """No candidate passes the gates."""
    ROLLBACK = "Rollback"
    """The newest attempt is given up and another follows."""
    HELD = "Held"
    """A run would be due and spec.suspend prevents it."""
    STOPPING = "Stopping"
    """A run may still be alive and spec.suspend requests its stop."""
    HINDERED = "Hindered"
    """A run waits for user action: a Secret, a claim, an image, a quota, a changed file."""
    UNPLACED = "Unplaced"
    """A run waits for a node longer than the profile's pendingTimeoutSeconds."""
    CROWDED = "Crowded"
    """A run would be due, and a run that is no longer wanted must end first."""
    OBSTRUCTED = "Obstructed"
    """A run would be due, and one of its objects cannot be created: its name is taken, or the cluster refuses it."""
    OVERSPENT = "Overspent"
    """A run would be due and limits.gpuHours is used up."""
    SPENT = "Spent"
    """A run is alive and limits.gpuHours is used up: its deadline is too late, since others ran in parallel."""


class Action(StrEnum):
    """What a reconcile does in the state that it has found."""

    START = "Start"
    WAIT = "Wait"
    CLEAR = "Clear"
    """End the runs that are in the way."""
    STOP = "Stop"
    """End the runs because of spec.suspend."""
    HOLD = "Hold"
    """Start nothing because of spec.suspend."""
    STALL = "Stall"
    """Report that user action is required."""
    FINISH = "Finish"
    ROLL_BACK = "RollBack"
    """Store the next attempt; the next reconcile starts it."""
    END = "End"
    """Finish without a model, since the budget is used up."""


@dataclass(frozen=True)
class Next:
    """The chain continues in another state."""

    state: State


@dataclass(frozen=True)
class Impossible:
    """The pair of state and fact cannot be; why."""

    why: str


Move = Next | Action | Impossible

_REQUIRED = Impossible("every adaptation has this stage")
_NO_CHOICE = Impossible("only selection chooses")
_NO_RUN = Impossible("nothing runs in this state")
_ONLY_ATTEMPTS = Impossible("only pretraining and selection end an attempt")
_ONLY_PRETRAIN = Impossible("only pretraining is judged after the limit; elsewhere it is a failure")
_FIXED = Impossible("one process without a model on a GPU: no numbers can rule it out")


NO_CHANGES: Final[Mapping[Fact, Move]] = {}
_MAY_NOT_FIT: Final[Mapping[Fact, Move]] = {Fact.REFUSED: Action.STALL}
"""Of the stages that hold a model on GPUs: the estimate, or a batch that cannot be divided, rules them out."""


def _runs(succeeded: Move, others: Mapping[Fact, Move] = NO_CHANGES) -> dict[Fact, Move]:
    """Return the moves of a state in which a stage runs; `others`: where it differs from most."""
    table: dict[Fact, Move] = {
        Fact.ABSENT: Action.START,
        Fact.RUNNING: Action.WAIT,
        Fact.BACKOFF: Action.WAIT,
        Fact.DUE: Action.START,
        Fact.SUCCEEDED: succeeded,
        Fact.LIMIT: _ONLY_PRETRAIN,
        Fact.EXHAUSTED: Action.STALL,
        Fact.REFUSED: _FIXED,
        Fact.SKIPPED: _REQUIRED,
        Fact.CHOSEN: _NO_CHOICE,
        Fact.UNMEASURED: _NO_CHOICE,
        Fact.BREACHED: _NO_CHOICE,
        Fact.ROLLBACK: _ONLY_ATTEMPTS,
        Fact.HELD: Action.HOLD,
        Fact.STOPPING: Action.STOP,
        Fact.HINDERED: Action.STALL,
        Fact.UNPLACED: Action.STALL,
        Fact.CROWDED: Action.CLEAR,
        Fact.OBSTRUCTED: Action.STALL,
        Fact.OVERSPENT: Action.END,
        Fact.SPENT: Action.CLEAR,
    }
    return {**table, **others}


def _decides(moves: Mapping[Fact, Move]) -> dict[Fact, Move]:
    """Return the moves of a state in which nothing runs."""
    table: dict[Fact, Move] = dict.fromkeys(Fact, _NO_RUN)
    return {**table, **moves}


TABLE: Final[dict[State, dict[Fact, Move]]] = {
    State.DESTINATION: _runs(Next(State.PREPARE), {Fact.SKIPPED: Next(State.PREPARE)}),
    State.PREPARE: _runs(Next(State.BASELINE)),
    State.BASELINE: _runs(Next(State.PRETRAIN), _MAY_NOT_FIT),
    State.PRETRAIN: _runs(
        Next(State.BLEND),
        {
            # The checkpoints from before the limit are candidates like any others.
            Fact.LIMIT: Next(State.BLEND),
            Fact.ROLLBACK: Action.ROLL_BACK,
            **_MAY_NOT_FIT,
        },
    ),
    State.BLEND: _runs(Next(State.SELECT), {Fact.SKIPPED: Next(State.SELECT), **_MAY_NOT_FIT}),
    State.SELECT: _decides(
        {
            Fact.CHOSEN: Next(State.INSTRUCTIONS),
            Fact.UNMEASURED: Next(State.EVALUATE),
            Fact.BREACHED: Action.STALL,
            Fact.ROLLBACK: Action.ROLL_BACK,
        }
    ),
    # Selection is asked again in each reconcile, so a finished evaluation leads back to it without a move.
    State.EVALUATE: _runs(Impossible("a measured candidate is not unmeasured"), _MAY_NOT_FIT),
    State.INSTRUCTIONS: _runs(Next(State.FINETUNE), {Fact.SKIPPED: Next(State.FINETUNE)}),
    State.FINETUNE: _runs(Next(State.PREFERENCES), {Fact.SKIPPED: Next(State.PREFERENCES), **_MAY_NOT_FIT}),
    State.PREFERENCES: _runs(Next(State.ALIGN), {Fact.SKIPPED: Next(State.ALIGN)}),
    State.ALIGN: _runs(Next(State.VERIFY), {Fact.SKIPPED: Next(State.VERIFY), **_MAY_NOT_FIT}),
    # The gates judge again here: tuning may have cost what the chosen candidate still had.
    State.VERIFY: _runs(Next(State.PUBLISH), {Fact.BREACHED: Action.STALL, **_MAY_NOT_FIT}),
    State.PUBLISH: _runs(Next(State.PUBLISHED)),
    State.PUBLISHED: _decides({Fact.SUCCEEDED: Action.FINISH}),
}

RUN_STATES: Final = tuple(state for state in State if TABLE[state][Fact.ABSENT] is Action.START)
"""States in which a stage runs, in the order of the chain."""


def next_move(state: State, fact: Fact) -> Next | Action:
    """Return what follows a fact in a state.

    Raises:
        AssertionError: the pair is impossible, so an assumption of the planner is broken.
    """
    move = TABLE[state][fact]
    if isinstance(move, Impossible):
        raise AssertionError(f"{fact} in {state}: {move.why}")
    return move
