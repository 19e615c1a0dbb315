"""The table of transitions and the chain's table of methods are complete."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.plan.chain import Chain
from dapt_operator.plan.chain_parts.assess import ChainInputs
from dapt_operator.plan.chain_parts.evaluations import FACT_ORDER
from dapt_operator.plan.chain_parts.settled import MissingFactsError
from dapt_operator.plan.observed import DesiredState
from dapt_operator.plan.status.build import PHASE_OF_STATE
from dapt_operator.plan.transitions import (
    RUN_STATES,
    TABLE,
    Action,
    Fact,
    Impossible,
    Next,
    State,
    next_move,
)
from support.builders import adaptation, profile


@pytest.mark.parametrize(("state", "fact"), list(itertools.product(State, Fact)))
def test_every_pair_of_state_and_fact_is_a_move_or_impossible_with_a_reason(state: State, fact: Fact) -> None:
    found = TABLE[state][fact]
    assert isinstance(found, Action | Next | Impossible)
    if isinstance(found, Impossible):
        assert found.why
        with pytest.raises(AssertionError, match=f"{fact} in {state}"):
            next_move(state, fact)
    else:
        assert next_move(state, fact) is found


def chain(ledger: Ledger) -> Chain:
    desired = DesiredState(
        DomainAdaptation.model_validate(adaptation()).spec, AdaptationProfile.model_validate(profile()).spec
    )
    return Chain(ChainInputs(desired, ledger, datetime(2026, 1, 31, 12, tzinfo=UTC), 1, "clinical"))


def test_the_chain_has_a_method_for_every_state_in_the_order_of_the_states() -> None:
    assert list(chain(Ledger()).states) == list(State)


def test_a_finished_stage_without_readable_facts_is_named() -> None:
    """A ledger of another version may hold them in a form that this one cannot read."""
    record = RunRecord(
        stage="prepare", kind="prepare", fence=1, state="Succeeded", facts={"model": "unknown"}
    )
    with pytest.raises(
        MissingFactsError, match="prepare has finished, and the ledger holds no readable facts of it"
    ):
        chain(Ledger(runs=(record, RunRecord(stage="baseline", kind="baseline", fence=2)))).position()


def test_the_order_of_the_states_is_the_order_in_which_they_follow_each_other() -> None:
    """Only an evaluation is followed by nothing: the chain continues from selection once it has been measured."""
    order = list(State)
    for state in State:
        following = {move.state for move in TABLE[state].values() if isinstance(move, Next)}
        assert all(order.index(later) > order.index(state) for later in following)
        assert following or state in (State.EVALUATE, State.PUBLISHED)


def test_the_chain_always_comes_to_an_action() -> None:
    """No circle of moves without an action, except over selection, which chooses another candidate each time."""
    steps = {state: {m.state for m in TABLE[state].values() if isinstance(m, Next)} for state in State}

    def reachable(state: State, seen: frozenset[State] = frozenset()) -> bool:
        if state in seen:
            return False
        return all(reachable(to, seen | {state}) for to in steps[state])

    assert reachable(State.PREPARE)


def test_only_the_end_of_an_attempt_rolls_back() -> None:
    rolls = {(state, fact) for state in State for fact in Fact if TABLE[state][fact] is Action.ROLL_BACK}
    assert rolls == {(State.PRETRAIN, Fact.ROLLBACK), (State.SELECT, Fact.ROLLBACK)}


@pytest.mark.parametrize("state", RUN_STATES)
def test_what_runs_ends_first_when_the_budget_is_spent(state: State) -> None:
    assert TABLE[state][Fact.SPENT] is Action.CLEAR


def test_evaluation_fact_order_lists_every_possible_fact_once() -> None:
    """Each fact that an evaluation can have is in it once."""
    possible = {fact for fact in Fact if not isinstance(TABLE[State.EVALUATE][fact], Impossible)}
    assert set(FACT_ORDER) == possible
    assert len(FACT_ORDER) == len(set(FACT_ORDER))


@pytest.mark.parametrize("state", RUN_STATES)
def test_nothing_starts_while_suspended_crowded_or_overspent(state: State) -> None:
    assert TABLE[state][Fact.HELD] is Action.HOLD
    assert TABLE[state][Fact.CROWDED] is Action.CLEAR
    assert TABLE[state][Fact.OVERSPENT] is Action.END


def test_every_state_but_the_choice_and_the_end_runs_a_stage() -> None:
    assert set(State) - set(RUN_STATES) == {State.SELECT, State.PUBLISHED}


def test_every_state_has_a_phase() -> None:
    assert set(PHASE_OF_STATE) == set(State)


def test_no_gate_that_failed_leads_on() -> None:
    assert {TABLE[state][Fact.BREACHED] for state in (State.SELECT, State.VERIFY)} == {Action.STALL}
