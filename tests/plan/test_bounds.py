"""The status stays below 256 KiB, whatever happened and whoever wrote the messages."""

from __future__ import annotations

from dapt_operator.api.ledger import Ledger, RunRecord
from dapt_operator.api.status import (
    CandidateStatus,
    Condition,
    DomainAdaptationStatus,
    Selected,
    StageStatus,
    TaskScore,
)
from dapt_operator.plan.bounds import fit, make_room, size_bytes

LONG = "ü" * 1024


def record(index: int, kind: str = "evaluate", **over: object) -> RunRecord:
    values = {
        "stage": kind, "kind": kind, "candidate": f"a1-s{index}", "fence": index, "state": "Succeeded", "message": LONG,
        "facts": {"numbers": "x" * 3500},
    }  # fmt: skip
    return RunRecord.model_validate(values | over)


def largest() -> DomainAdaptationStatus:
    """As much as the bounds of its fields allow, and more than ever was."""
    task = TaskScore(score=0.123456, change_points=-12.3456, standard_error_points=1.23456)
    tasks = {f"a-task-with-a-long-name-{index}": task for index in range(40)}
    moment = "2026-01-31T12:00:00Z"
    return DomainAdaptationStatus(
        conditions=tuple(
            Condition(type=f"T{index}", status="True", reason="R", message="m" * 4096, last_transition_time=moment)
            for index in range(8)
        ),
        stages=tuple(
            StageStatus(
                name="evaluate", kind="evaluate", candidate=f"a1-s{index}", message=LONG,
                last_log_lines=("x" * 100,) * 20,
            )
            for index in range(30)
        ),
        candidates=tuple(
            CandidateStatus(id=f"a1-s{index}", tasks=tasks, message="m" * 4096, digest="d" * 64) for index in range(100)
        ),
        selected=Selected(id="a1-s7", reason="the largest gain"),
        ledger=Ledger(fence=40, runs=tuple(record(index) for index in range(40))),
    )  # fmt: skip


def test_the_largest_status_fits_and_keeps_what_decisions_read() -> None:
    status = largest()
    assert size_bytes(status.to_dict()) > 1024 * 1024
    small = fit(status)
    assert size_bytes(small.to_dict()) <= 240 * 1024
    assert small.ledger is not None
    assert status.ledger is not None
    assert [one.facts for one in small.ledger.runs] == [one.facts for one in status.ledger.runs]
    assert small.selected == status.selected
    assert "a1-s7" in {one.id for one in small.candidates}
    assert small.stages[-1].last_log_lines != ()
    assert fit(small) == small


def test_a_status_that_fits_is_left_as_it_is() -> None:
    status = largest().model_copy(update={"candidates": (), "ledger": None})
    assert fit(status) is status


def test_what_is_least_needed_is_cut_first() -> None:
    status = largest().model_copy(update={"ledger": None, "stages": ()})
    few = status.model_copy(update={"candidates": status.candidates[:40]})
    small = fit(few)
    assert [one.message for one in small.candidates] == ["m" * 197 + "..."] * 40
    assert [one.tasks for one in small.candidates] == [one.tasks for one in few.candidates]
    assert small.conditions == few.conditions
    many = fit(status)
    assert [one.id for one in many.candidates if one.tasks] == ["a1-s7"]


def test_a_full_ledger_forgets_what_was_done_for_another_candidate() -> None:
    runs = (
        record(1, "prepare", candidate=None),
        record(2),
        record(3, "finetune"),
        record(4, "finetune", candidate="a1-s2"),
        *(record(index) for index in range(5, 41)),
    )
    ledger = Ledger(fence=40, runs=runs)
    assert len(runs) == 40
    room = make_room(ledger, "a1-s3")
    assert [one.fence for one in ledger.runs if one not in room.runs] == [4]
    room = make_room(ledger, "a1-s2")
    assert [one.fence for one in ledger.runs if one not in room.runs] == [3]
    measures = Ledger(runs=tuple(record(index) for index in range(40)))
    assert [one.fence for one in measures.runs if one not in make_room(measures, "a1-s0").runs] == [1]
    short = Ledger(runs=runs[:39])
    assert make_room(short, "a1-s3") is short
