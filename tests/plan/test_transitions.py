"""The table of transitions is whole."""

from __future__ import annotations

import itertools

import pytest

from dapt_operator.plan.chain import Chain
from dapt_operator.plan.evaluations import ORDER
from dapt_operator.plan.transitions import RUN_STATES, TABLE, Do, Fact, Go, Impossible, State, move


@pytest.mark.parametrize(("state", "fact"), list(itertools.product(State, Fact)))
def test_every_pair_of_state_and_fact_is_a_move_or_impossible_with_a_reason(state: State, fact: Fact) -> None:
    found = TABLE[state][fact]
    assert isinstance(found, Do | Go | Impossible)
    if isinstance(found, Impossible):
        assert found.why
        with pytest.raises(AssertionError, match=f"{fact} in {state}"):
            move(state, fact)
    else:
        assert move(state, fact) is found


def test_every_state_has_a_look() -> None:
    assert all(callable(getattr(Chain, f"_{state.name.lower()}")) for state in State)


def test_a_walk_always_ends() -> None:
    """No circle of moves without an action, except over selection, which chooses another candidate each time."""
    steps = {state: {m.to for m in TABLE[state].values() if isinstance(m, Go)} for state in State}

    def reachable(state: State, seen: frozenset[State] = frozenset()) -> bool:
        if state in seen:
            return False
        return all(reachable(to, seen | {state}) for to in steps[state])

    assert reachable(State.PREPARE)


def test_only_the_end_of_an_attempt_rolls_back() -> None:
    rolls = {(state, fact) for state in State for fact in Fact if TABLE[state][fact] is Do.ROLL_BACK}
    assert rolls == {(State.PRETRAIN, Fact.RETREAT), (State.SELECT, Fact.RETREAT)}


@pytest.mark.parametrize("state", RUN_STATES)
def test_what_runs_ends_first_when_the_budget_is_spent(state: State) -> None:
    assert TABLE[state][Fact.SPENT] is Do.CLEAR


def test_the_order_in_which_evaluations_speak_for_each_other_is_whole() -> None:
    """Each fact that an evaluation can have stands in it once."""
    possible = {fact for fact in Fact if not isinstance(TABLE[State.EVALUATE][fact], Impossible)}
    assert set(ORDER) == possible
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("state", RUN_STATES)
def test_nothing_starts_while_suspended_crowded_or_overspent(state: State) -> None:
    assert TABLE[state][Fact.HELD] is Do.HOLD
    assert TABLE[state][Fact.CROWDED] is Do.CLEAR
    assert TABLE[state][Fact.OVERSPENT] is Do.END


def test_no_gate_that_failed_leads_on() -> None:
    assert {TABLE[state][Fact.BREACHED] for state in (State.SELECT, State.VERIFY)} == {Do.STALL}
