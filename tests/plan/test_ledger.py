"""Updates of the ledger from the runs that exist, and the methods by which records change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from dapt_contract.pod.failure import Cause
from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.v1alpha1.profile import Retries
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_bounds import CreatedRun
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord, StageKey
from dapt_operator.plan.ledger.gpu_hours import NOTE_SECONDS
from dapt_operator.plan.ledger.retries import backoff_seconds, stalled
from dapt_operator.plan.ledger.update import update_ledger
from dapt_operator.stage_run import RunPhase, RunState
from support.builders import checkpoint, prepare_facts, pretrain_facts

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def run(stage: str = "prepare", try_number: int = 1, fence: int = 1, **over: Any) -> RunState:
    identity = RunIdentity(
        namespace="health",
        name="clinical",
        uid="u",
        stage=stage,
        attempt=1,
        try_number=try_number,
        fence=fence,
    )
    values: dict[str, Any] = {
        "kind": stage, "config_digest": "sha256:c", "object_name": f"clinical-{stage}", "phase": RunPhase.RUNNING,
        "started": NOW, "created": NOW,
    }  # fmt: skip
    return RunState(identity=identity, **(values | over))


def updated(ledger: Ledger, *runs: RunState, now: datetime = NOW, suspended: bool = False) -> Ledger:
    return update_ledger(ledger, runs, now, Retries(), is_suspended=suspended)


def open_record(stage: str = "prepare", **over: Any) -> Ledger:
    values = {"stage": stage, "kind": stage, "fence": 1, "created": "2026-01-31T12:00:00Z"}
    return Ledger(fence=1, runs=(RunRecord.model_validate(values | over),))


def only(ledger: Ledger) -> RunRecord:
    (record,) = ledger.runs
    return record


def test_a_run_whose_creation_was_not_stored_is_adopted() -> None:
    record = only(updated(Ledger(), run(try_number=1, fence=4)))
    assert (record.stage, record.try_number, record.fence, record.state) == ("prepare", 1, 4, "Open")


def test_the_newest_fence_is_kept_even_of_an_older_run() -> None:
    assert updated(Ledger(), run(fence=3), run(try_number=2, fence=9)).fence == 9


def test_an_older_run_that_reappears_changes_nothing() -> None:
    ledger = open_record(try_number=2, fence=2)
    late = run(try_number=1, phase=RunPhase.SUCCEEDED, facts=prepare_facts(), completed=NOW)
    newer = run(try_number=2, fence=2)
    assert updated(ledger, late, newer).runs[0].state == "Open"


def test_a_closed_record_stays_as_it_was_stored() -> None:
    done = updated(open_record(), run(phase=RunPhase.SUCCEEDED, facts=prepare_facts(), completed=NOW))
    again = updated(done, run(phase=RunPhase.FAILED, cause=Cause.CRASH, completed=NOW))
    assert again == done


def test_a_vanished_run_is_given_time_to_appear() -> None:
    ledger = open_record()
    assert only(updated(ledger, now=NOW + timedelta(seconds=10))).state == "Open"
    lost = only(updated(ledger, now=NOW + timedelta(seconds=11)))
    assert (lost.state, lost.retry, lost.cause, lost.message) == (
        "Failed",
        True,
        "Disruption",
        "its Job is gone",
    )


def test_a_run_that_suspension_took_away_was_stopped() -> None:
    stopped = only(updated(open_record(), now=NOW + timedelta(seconds=60), suspended=True))
    assert (stopped.cause, stopped.message, stopped.retry) == ("Stopped", "stopped by spec.suspend", True)


def test_facts_survive_the_ledger_unchanged() -> None:
    # Without the numbers of items, which no decision reads: a message has no space for them.
    facts = prepare_facts(warnings=("a",), task_items=())
    record = only(updated(open_record(), run(phase=RunPhase.SUCCEEDED, facts=facts, completed=NOW)))
    read = Ledger(runs=(record,)).find("prepare")
    assert read is not None
    assert type(facts).model_validate(read.facts) == facts


def test_steps_of_a_failed_pretraining_count_as_gained_only_when_they_are_new() -> None:
    def failed(ledger: Ledger, steps: int, try_number: int) -> Ledger:
        facts = pretrain_facts([checkpoint(10)], "Stopped", steps=steps)
        broken = run(
            "pretrain", try_number, try_number, phase=RunPhase.FAILED, cause=Cause.INFRASTRUCTURE, facts=facts,
            completed=NOW, accelerators=2,
        )  # fmt: skip
        return updated(ledger, broken, now=NOW)

    first = failed(open_record("pretrain"), 15, 1)
    assert (only(first).stuck, only(first).step, only(first).not_before) == (1, 15, None)
    second = failed(first, 15, 2)
    assert (only(second).stuck, only(second).not_before) == (2, "2026-01-31T12:00:10Z")
    third = failed(second, 30, 3)
    assert (only(third).stuck, only(third).retry, only(third).failures) == (1, True, {"infrastructure": 3})


def test_accelerator_seconds_add_up_over_runs() -> None:
    later = NOW + timedelta(seconds=90)
    first = updated(
        open_record("baseline"),
        run("baseline", phase=RunPhase.FAILED, cause=Cause.HANG, completed=later, accelerators=4),
        now=later,
    )
    second = updated(
        first,
        run("baseline", 2, 2, phase=RunPhase.FAILED, cause=Cause.HANG, completed=later, accelerators=4),
        now=later,
    )
    assert only(second).accelerator_seconds == 720.0


def test_a_record_refuses_a_misspelled_field_and_a_value_of_another_type() -> None:
    record = only(open_record())
    with pytest.raises(TypeError, match="RunRecord has no field retries"):
        record.with_values(retries=1)
    with pytest.raises(ValidationError, match="started"):
        record.running_since("yesterday")


def test_a_new_run_resets_what_belongs_to_the_one_before_and_keeps_what_all_runs_cost() -> None:
    failed = only(
        updated(
            open_record("baseline"),
            run(
                "baseline",
                phase=RunPhase.FAILED,
                cause=Cause.HANG,
                completed=NOW + timedelta(seconds=30),
                accelerators=2,
            ),
        )
    )
    created = CreatedRun(
        number=2, fence=7, config_digest="sha256:d", generation=3, created="2026-01-31T12:01:00Z"
    )
    opened = failed.opened(created)
    assert (opened.state, opened.retry, opened.cause, opened.completed, opened.message) == (
        "Open",
        False,
        None,
        None,
        "",
    )
    assert (opened.try_number, opened.fence, opened.generation, opened.restarts) == (2, 7, 3, 1)
    assert (opened.accelerator_seconds, opened.failures, opened.stuck) == (60.0, {"hang": 1}, 1)


def test_a_run_after_the_last_retry_starts_with_full_retry_budgets() -> None:
    values: dict[str, Any] = {
        "state": "Failed",
        "retry": False,
        "cause": "BadInput",
        "failures": {"hang": 2},
        "stuck": 3,
    }
    given_up = only(open_record(**values))
    assert given_up.has_failed_for_good
    opened = given_up.opened(CreatedRun(2, 2, "sha256:d", 2, "2026-01-31T12:01:00Z"))
    assert (opened.failures, opened.stuck) == ({}, 0)


def test_a_run_that_is_lost_after_a_stop_request_costs_what_was_noted_then() -> None:
    stopping = only(open_record("baseline")).stop_requested(held_seconds=30.0, accelerators=4)
    assert stopping.is_stop_requested
    lost = stopping.lost("2026-01-31T12:01:00Z", Cause.STOPPED, "its stop was requested")
    assert (lost.accelerator_seconds, lost.held_seconds, lost.asked_seconds, lost.held) == (
        120.0,
        30.0,
        None,
        None,
    )
    assert (lost.state, lost.retry, lost.is_stop_requested) == ("Failed", True, False)


def test_what_a_run_was_seen_to_have_run_is_never_lowered() -> None:
    noted = only(open_record("pretrain")).noting(held_seconds=300.0, accelerators=4, step=7)
    again = noted.noting(held_seconds=20.0, accelerators=1, step=3)
    assert (again.ran_seconds, again.accelerators, again.seen_step) == (300.0, 4, 7)


def test_a_stop_request_of_an_older_version_is_counted_as_it_was_noted() -> None:
    stopping = open_record("baseline", cause="Stopped", asked_seconds=30.0, held=4)
    lost = only(updated(stopping, now=NOW + timedelta(seconds=60)))
    assert (lost.accelerator_seconds, lost.held_seconds) == (120.0, 30.0)


def test_a_run_that_vanishes_costs_the_time_until_it_was_missed() -> None:
    ledger = open_record("baseline", accelerators=4, started="2026-01-31T12:00:00Z")
    lost = only(updated(ledger, now=NOW + timedelta(seconds=60)))
    assert lost.accelerator_seconds == 240.0
    long_ago = only(updated(ledger, now=NOW + timedelta(days=1)))
    assert long_ago.accelerator_seconds == 4 * NOTE_SECONDS
    never_started = open_record("baseline", accelerators=4)
    assert only(updated(never_started, now=NOW + timedelta(days=1))).accelerator_seconds == 0.0


@pytest.mark.parametrize("is_seen_to_end", [True, False])
def test_the_grace_period_of_a_discarded_run_is_counted(is_seen_to_end: bool) -> None:
    live = run("baseline", phase=RunPhase.RUNNING, started=NOW, accelerators=4)
    found, ended = NOW + timedelta(seconds=100), NOW + timedelta(seconds=145)
    ledger = update_ledger(Ledger(), [live], found, Retries(), lambda *_: None)
    assert only(ledger).accelerator_seconds == 400.0
    deleting = replace(live, is_deleting=True)
    assert only(updated(ledger, deleting, now=ended)) == only(ledger), "one write, at its end"
    over = replace(deleting, phase=RunPhase.FAILED, completed=ended)
    gone = updated(ledger, *([over] if is_seen_to_end else []), now=ended)
    assert (only(gone).accelerator_seconds, only(gone).held_seconds) == (580.0, 145.0)
    assert only(updated(gone, now=ended + timedelta(days=1))) == only(gone), "counted once"


def test_pods_that_are_gone_do_not_take_their_time_with_them() -> None:
    ledger = open_record("baseline", accelerators=4, ran_seconds=500.0, started="2026-01-31T12:00:00Z")
    later = NOW + timedelta(seconds=600)
    ended = run("baseline", phase=RunPhase.FAILED, cause=Cause.HANG, started=later, completed=later)
    assert only(updated(ledger, ended, now=later)).accelerator_seconds == 2000.0


def test_a_run_whose_end_was_never_seen_leaves_its_cost_to_the_next() -> None:
    ledger = open_record("baseline", accelerators=4, ran_seconds=500.0)
    adopted = only(updated(ledger, run("baseline", 2, 2), now=NOW))
    assert (adopted.try_number, adopted.accelerator_seconds) == (2, 2000.0)


def test_a_disruption_after_a_step_gained_begins_the_count_again() -> None:
    ledger = open_record("pretrain", disruptions=7, step=40, seen_step=50, started="2026-01-31T12:00:00Z")
    lost = only(updated(ledger, now=NOW + timedelta(seconds=60)))
    assert (lost.disruptions, lost.step, lost.retry, lost.not_before) == (1, 50, True, None)
    stuck = open_record("pretrain", disruptions=7, step=50, seen_step=50, started="2026-01-31T12:00:00Z")
    assert only(updated(stuck, now=NOW + timedelta(seconds=60))).disruptions == 8


@pytest.mark.parametrize(("in_a_row", "seconds"), [(1, 0), (2, 10), (3, 20), (7, 300), (10**12, 300)])
def test_the_wait_between_runs_doubles_up_to_five_minutes(in_a_row: int, seconds: float) -> None:
    assert backoff_seconds(in_a_row) == seconds


def test_a_cause_of_another_version_is_said_as_a_crash() -> None:
    record = only(open_record(state="Failed", cause="Meteorite", stuck=3, message="gone"))
    assert stalled(record, Retries())[1].startswith("prepare failed 3 times in a row")


def test_a_dropped_record_leaves_its_cost_and_its_number_of_runs() -> None:
    ledger = open_record("evaluate", candidate="a1-s40", try_number=3, state="Succeeded", restarts=2)
    (record,) = ledger.runs
    dropped = ledger.without_record(record)
    assert dropped.runs == ()
    assert dropped.dropped_work() == {StageKey("evaluate", 1, "a1-s40"): 3}
    assert dropped.closed is not None
    assert dropped.closed.restarts == 2


@pytest.mark.parametrize("cause", [Cause.INFRASTRUCTURE, Cause.DISRUPTION, Cause.HANG, Cause.CRASH])
def test_a_run_that_was_asked_to_stop_and_was_killed_was_stopped(cause: Cause) -> None:
    (record,) = open_record("blend").runs
    stopping = record.stop_requested(held_seconds=30.0, accelerators=4)
    ended = only(
        updated(
            Ledger(fence=1, runs=(stopping,)),
            run("blend", phase=RunPhase.FAILED, cause=cause, completed=NOW, exit_code=137),
        )
    )
    assert (ended.state, ended.cause, ended.retry, dict(ended.failures)) == ("Failed", "Stopped", True, {})
    again = ended.opened(CreatedRun(2, 2, "sha256:d", 2, "2026-01-31T12:01:00Z"))
    assert again.restarts == 0


@pytest.mark.parametrize("cause", [Cause.BAD_INPUT, Cause.OUT_OF_MEMORY])
def test_a_failure_of_its_own_stays_one_after_a_stop_request(cause: Cause) -> None:
    (record,) = open_record("pretrain").runs
    stopping = record.stop_requested(held_seconds=30.0, accelerators=4)
    runs = run("pretrain", phase=RunPhase.FAILED, cause=cause, completed=NOW)
    assert only(updated(Ledger(fence=1, runs=(stopping,)), runs)).cause == cause.value
