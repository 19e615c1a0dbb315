"""What the ledger learns from the runs that are there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from dapt_contract.failure import Cause
from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.v1alpha1.ledger import Ledger
from dapt_operator.api.v1alpha1.profile import Retries
from dapt_operator.api.v1alpha1.run_record import RunRecord
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


def learn(ledger: Ledger, *runs: RunState, now: datetime = NOW, suspended: bool = False) -> Ledger:
    return update_ledger(ledger, runs, now, Retries(), 1, is_suspended=suspended)


def open_record(stage: str = "prepare", **over: Any) -> Ledger:
    values = {"stage": stage, "kind": stage, "fence": 1, "created": "2026-01-31T12:00:00Z"}
    return Ledger(fence=1, runs=(RunRecord.model_validate(values | over),))


def only(ledger: Ledger) -> RunRecord:
    (record,) = ledger.runs
    return record


def test_a_run_that_was_never_written_down_is_found_again() -> None:
    record = only(learn(Ledger(), run(try_number=1, fence=4)))
    assert (record.stage, record.try_number, record.fence, record.state) == ("prepare", 1, 4, "Open")


def test_the_newest_fence_is_remembered_even_of_an_older_try() -> None:
    assert learn(Ledger(), run(fence=3), run(try_number=2, fence=9)).fence == 9


def test_an_older_try_that_comes_back_changes_nothing() -> None:
    ledger = open_record(try_number=2, fence=2)
    late = run(try_number=1, phase=RunPhase.SUCCEEDED, facts=prepare_facts(), completed=NOW)
    newer = run(try_number=2, fence=2)
    assert learn(ledger, late, newer).runs[0].state == "Open"


def test_what_has_ended_stays_as_it_was_written() -> None:
    done = learn(open_record(), run(phase=RunPhase.SUCCEEDED, facts=prepare_facts(), completed=NOW))
    again = learn(done, run(phase=RunPhase.FAILED, cause=Cause.CRASH, completed=NOW))
    assert again == done


def test_a_vanished_run_is_given_time_to_appear() -> None:
    ledger = open_record()
    assert only(learn(ledger, now=NOW + timedelta(seconds=10))).state == "Open"
    lost = only(learn(ledger, now=NOW + timedelta(seconds=11)))
    assert (lost.state, lost.retry, lost.cause, lost.message) == (
        "Failed",
        True,
        "Disruption",
        "its Job is gone",
    )


def test_a_run_that_suspension_took_away_was_stopped() -> None:
    stopped = only(learn(open_record(), now=NOW + timedelta(seconds=60), suspended=True))
    assert (stopped.cause, stopped.message, stopped.retry) == ("Stopped", "stopped by spec.suspend", True)


def test_facts_survive_the_ledger_unchanged() -> None:
    facts = prepare_facts(warnings=("a",))
    record = only(learn(open_record(), run(phase=RunPhase.SUCCEEDED, facts=facts, completed=NOW)))
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
        return learn(ledger, broken, now=NOW)

    first = failed(open_record("pretrain"), 15, 1)
    assert (only(first).stuck, only(first).step, only(first).not_before) == (1, 15, None)
    second = failed(first, 15, 2)
    assert (only(second).stuck, only(second).not_before) == (2, "2026-01-31T12:00:10Z")
    third = failed(second, 30, 3)
    assert (only(third).stuck, only(third).retry, only(third).failures) == (1, True, {"infrastructure": 3})


def test_accelerator_seconds_add_up_over_tries() -> None:
    later = NOW + timedelta(seconds=90)
    first = learn(
        open_record("baseline"),
        run("baseline", phase=RunPhase.FAILED, cause=Cause.HANG, completed=later, accelerators=4),
        now=later,
    )
    second = learn(
        first,
        run("baseline", 2, 2, phase=RunPhase.FAILED, cause=Cause.HANG, completed=later, accelerators=4),
        now=later,
    )
    assert only(second).accelerator_seconds == 720.0
