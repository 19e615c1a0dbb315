"""The status stays below 256 KiB, whatever happened and whoever wrote the messages."""

from __future__ import annotations

from dapt_contract.base import Contract
from dapt_contract.measure import Measure
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.evaluate import EvaluateFacts
from dapt_operator.api.v1alpha1.status import (
    CandidateStatus,
    Condition,
    DomainAdaptationStatus,
    SelectedStatus,
    StageStatus,
    TaskScore,
)
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.api.v1alpha1.stored.run_record import RunRecord
from dapt_operator.api.v1alpha1.stored.stored_facts import compact_facts
from dapt_operator.plan.ledger.compaction import free_one_record
from dapt_operator.plan.ledger.stage_facts import read_facts
from dapt_operator.plan.status.size_limit import size_bytes, truncate_status
from support.builders import base_measure, checkpoint, measure, pretrain_facts, score

LONG = "ü" * 1024


def loaded(measured: Measure, *, compared: bool) -> Measure:
    """The same with as many scores as there may be, under the longest names."""
    difference = 0.012345 if compared else None
    names = [
        (side, f"{side}-task-{index}".ljust(40, "x")) for side in ("domain", "general") for index in range(10)
    ]
    scores = tuple(score(name, side, 0.512345, difference, 0.0123456) for side, name in names)
    return measured.model_copy(update={"digest": "d" * 64, "scores": scores})


BASE = loaded(base_measure(), compared=False)


def record(index: int, kind: str = "evaluate", facts: Contract | None = None, **over: object) -> RunRecord:
    if kind == "evaluate" and facts is None:
        found = loaded(measure(increase=index / 1000), compared=True)
        facts = EvaluateFacts(candidate=f"a1-s{index}", measure=found)
    values = {
        "stage": kind, "kind": kind, "candidate": f"a1-s{index}", "fence": index, "state": "Succeeded", "message": LONG,
        "facts": compact_facts(facts) if facts is not None else None, "acceleratorSeconds": 10.0, "restarts": 1,
        "failures": {"hang": 1},
    }  # fmt: skip
    return RunRecord.model_validate(values | over)


def chain() -> tuple[RunRecord, ...]:
    """What is there before the evaluations: eleven attempts of fifty checkpoints."""
    rows = [checkpoint(step * 1000, 2.612345, 0.0123456) for step in range(1, 51)]
    return (
        record(1, "baseline", BaselineFacts(measure=BASE), candidate=None),
        *(
            record(2, "pretrain", pretrain_facts(rows), candidate=None, attempt=number)
            for number in range(1, 12)
        ),
    )


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
        selected=SelectedStatus(id="a1-s7", reason="the largest gain"),
        ledger=Ledger(fence=40, runs=(*chain(), *(record(index) for index in range(28)))),
    )  # fmt: skip


def test_the_largest_status_fits_and_keeps_what_decisions_read() -> None:
    status = largest()
    assert size_bytes(status.to_dict()) > 1024 * 1024
    small = truncate_status(status)
    assert size_bytes(small.to_dict()) <= 240 * 1024
    assert small.ledger is not None
    assert status.ledger is not None
    before, after = read_facts(status.ledger), read_facts(small.ledger)
    assert len(before.measures) == 28
    assert (after.measures, after.pretrains) == (before.measures, before.pretrains)
    assert small.selected == status.selected
    assert "a1-s7" in {one.id for one in small.candidates}
    assert small.stages[-1].last_log_lines != ()
    assert truncate_status(small) == small


def test_a_status_that_fits_is_left_as_it_is() -> None:
    status = largest().model_copy(update={"candidates": (), "ledger": None})
    assert truncate_status(status) is status


def test_what_is_least_needed_is_cut_first() -> None:
    status = largest().model_copy(update={"ledger": None, "stages": ()})
    few = status.model_copy(update={"candidates": status.candidates[:40]})
    small = truncate_status(few)
    assert [one.message for one in small.candidates] == ["m" * 197 + "..."] * 40
    assert [one.tasks for one in small.candidates] == [one.tasks for one in few.candidates]
    assert small.conditions == few.conditions
    many = truncate_status(status)
    assert [one.id for one in many.candidates if one.tasks] == ["a1-s7"]


def test_a_full_ledger_lets_go_of_measures_first_then_of_what_was_done_for_another_candidate() -> None:
    others = (record(3, "finetune"), record(4, "finetune", candidate="a1-s2"))
    full = Ledger(fence=40, runs=(*chain(), *others, *(record(index) for index in range(5, 31))))
    assert len(full.runs) == 40
    room = free_one_record(full, "a1-s3")
    assert [one.fence for one in full.runs if one not in room.runs] == [5]
    assert read_facts(room).measures == read_facts(full).measures
    failed = {"state": "Failed", "facts": None}
    without = Ledger(
        runs=tuple(r.model_copy(update=failed) if r.kind == "evaluate" else r for r in full.runs)
    )
    gone = free_one_record(without, "a1-s3")
    assert [one.fence for one in without.runs if one not in gone.runs] == [4]
    assert gone.closed is not None
    assert gone.closed.lineages == ("finetune 1 a1-s2 1",)
    short = Ledger(runs=full.runs[:39])
    assert free_one_record(short, "a1-s3") is short


def test_compaction_counts_dropped_records_and_drops_the_most_forgetting_first() -> None:
    ledger = Ledger(runs=chain())
    for index in range(5, 205):
        ledger = free_one_record(ledger.model_copy(update={"runs": (*ledger.runs, record(index))}), None)
    assert len(ledger.runs) == 39
    assert ledger.closed is not None
    assert len(ledger.closed.lineages) == 173
    assert (ledger.closed.accelerator_seconds, ledger.closed.restarts) == ({"evaluate": 1730.0}, 173)
    assert ledger.closed.failures == {"hang": 173}
    texts = [one.text for one in ledger.measures]
    assert sum(len(text) for text in texts) <= 96 * 1024
    kept = [one.candidate for one in ledger.measures]
    assert kept == [f"a1-s{index}" for index in range(5, 5 + len(kept))]
    assert len(kept) > 60
    facts = read_facts(ledger)
    assert set(kept) <= set(facts.measures)
    assert facts.dropped_evaluations == {f"a1-s{index}" for index in range(5, 178)}
    assert facts.measures["a1-s5"] == EvaluateFacts.model_validate(record(5).facts).measure
    assert size_bytes(truncate_status(DomainAdaptationStatus(ledger=ledger)).to_dict()) <= 240 * 1024
