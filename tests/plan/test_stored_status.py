"""A stored status that this version did not write: what can be read counts, the rest is said and done again."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dapt_operator.api.schema.crd import adaptation_definition
from dapt_operator.launchers import LAUNCHERS, all_states
from dapt_operator.plan.decide import decide
from dapt_operator.plan.observed import observe
from dapt_operator.plan.stored_status import read_stored_status
from dapt_operator.testing.objects import Stays
from support.worlds import World

SPEC = {
    "evaluation": {"when": "everyCheckpoint"},
    "gates": {"onBreach": "Rollback"},
    "selection": {"interpolate": [0.5, 1.0], "averageLast": 2},
}


@cache
def lived(stage: str) -> World:
    """An adaptation in the middle of its life, with a run of this stage."""
    world = World(SPEC)
    world.live_until(stage)
    world.cluster.run_pods(world.key, lambda run: Stays())
    world.settle()
    return world


def ledger_of(status: dict[str, Any], **over: Any) -> dict[str, Any]:
    changed = copy.deepcopy(status)
    changed["ledger"] |= over
    return changed


def damaged(stage: str, index: int, **over: Any) -> World:
    """A world whose status has another record at this place, None: without the field."""
    world = World(SPEC)
    world.live_until(stage)
    record = world.cluster.stored(world.key).resource["status"]["ledger"]["runs"][index]
    for name, value in over.items():
        if value is None:
            record.pop(name)
        else:
            record[name] = value
    return world


def test_a_valid_status_is_read_as_it_is() -> None:
    status = lived("finetune").status
    read = read_stored_status(status)
    assert read.left_out == ()
    assert read.model.to_dict() == status


def test_only_the_part_that_cannot_be_read_is_left_out() -> None:
    status = lived("finetune").status
    runs = copy.deepcopy(status["ledger"]["runs"])
    runs[1]["state"] = "Paused"
    del runs[2]["stage"]
    del runs[2]["kind"]
    read = read_stored_status(ledger_of(status, runs=runs, fence="seven"))
    assert read.left_out == (
        "ledger.runs.2: Field required",
        "ledger.runs.1.state: Input should be 'Open', 'Succeeded' or 'Failed'",
        "ledger.fence: Input should be a valid integer",
    )
    ledger = read.model.ledger
    assert ledger is not None
    assert [record.stage for record in ledger.runs] == [run["stage"] for run in (*runs[:2], *runs[3:])]
    assert ledger.unreadable == read.left_out


def test_a_list_that_is_too_long_keeps_its_newest_items() -> None:
    status = lived("finetune").status
    lines = [f"evaluate 1 a1-s{number} 1" for number in range(900)]
    read = read_stored_status(ledger_of(status, closed={"lineages": lines}))
    ledger = read.model.ledger
    assert ledger is not None
    assert ledger.closed is not None
    assert ledger.closed.lineages == tuple(lines[100:])
    assert ledger.runs


def test_a_record_of_an_unknown_kind_is_kept_and_harms_nothing() -> None:
    world = World(SPEC)
    world.live_until("pretrain")
    stored = world.cluster.stored(world.key).resource["status"]["ledger"]
    later = stored["runs"][0] | {"stage": "distil", "kind": "distil", "facts": {"x": 1}}
    stored["runs"].insert(0, later)
    stored["later"] = 1
    world.live()
    assert world.status["phase"] == "Published"


@pytest.mark.parametrize("facts", [None, {"model": 5}])
def test_a_stage_whose_facts_are_lost_reports_again(facts: dict[str, Any] | None) -> None:
    world = damaged("pretrain", 1, facts=facts)
    assert world.status["ledger"]["runs"][1]["stage"] == "prepare"
    world.cluster.delete_jobs(world.key)
    # The cluster in memory takes no status in which a success is taken back.
    world.cluster.stored(world.key).resource["status"] = read_stored_status(world.status).model.to_dict()
    assert world.status["ledger"]["runs"][1]["message"] == (
        "its facts in the status could not be read: a short run reads the report again"
    )
    world.live()
    assert world.tries.count("prepare/2") == 1
    assert world.status["phase"] == "Published"


def test_what_was_left_out_stays_in_a_condition() -> None:
    world = damaged("pretrain", 1, state="Paused")
    world.settle()
    said = (
        "the spec and its profile fit together; parts of an earlier status could not be read, and what they recorded is"
        " done again where it is needed: ledger.runs.1.state: Input should be 'Open', 'Succeeded' or 'Failed'"
    )
    assert world.condition("Accepted") == ("True", "Planned", said)
    writes = world.cluster.writes
    assert world.reconcile().is_empty
    assert world.cluster.writes == writes
    assert world.condition("Accepted")[2] == said


def test_a_status_that_is_none_at_all_begins_again() -> None:
    read = read_stored_status(["what"])
    assert read.left_out == ("the whole status",)
    ledger = read.model.ledger
    assert ledger is not None
    assert ledger.unreadable == ("the whole status",)
    assert read_stored_status({"ledger": 5}).left_out == (
        "ledger: Input should be a valid dictionary or instance of Ledger",
    )


def test_times_that_do_not_exist_are_left_out() -> None:
    status = lived("finetune").status
    runs = copy.deepcopy(status["ledger"]["runs"])
    runs[0]["created"] = "2026-02-31T00:00:00Z"
    read = read_stored_status(ledger_of(status, runs=runs))
    assert [part.partition(":")[0] for part in read.left_out] == ["ledger.runs.0.created"]


def test_attempts_after_a_gap_are_left_out() -> None:
    status = lived("finetune").status
    attempts = [{"number": number, "learningRate": 1e-5, "replayFraction": 0.1} for number in (2, 4, 5)]
    read = read_stored_status(ledger_of(status, attempts=attempts))
    assert read.left_out == ("ledger.attempts.1: it is numbered 4",)


@pytest.mark.parametrize(
    "change",
    [{"fence": "x"}, {"fence": 0}, {"kind": []}],
    ids=["no fence", "an impossible fence", "no kind"],
)
@pytest.mark.parametrize("stage", ["prepare", "evaluate"])
def test_live_run_whose_record_cannot_be_read_goes_on_alone(stage: str, change: dict[str, Any]) -> None:
    world = damaged(stage, -1, **change)
    world.live()
    assert {run.run.try_number for run in world.runs} == {1}
    assert world.status["phase"] == "Published"


@pytest.mark.parametrize("kind", ["later", "publish"])
def test_known_stage_with_another_kind_keeps_its_facts(kind: str) -> None:
    status = lived("finetune").status
    runs = copy.deepcopy(status["ledger"]["runs"])
    whole = read_stored_status(status).model.ledger
    runs[1]["kind"] = kind
    read = read_stored_status(ledger_of(status, runs=runs))
    assert read.left_out == ("ledger.runs: prepare has another kind",)
    assert read.model.ledger is not None
    assert whole is not None
    assert read.model.ledger.runs == whole.runs


@pytest.mark.parametrize("num_kept", [0, 2])
def test_live_run_whose_record_was_removed_by_hand_goes_on_alone(num_kept: int) -> None:
    world = World(
        {"cleanup": {"finishedRuns": "Retain"}}
    )  # the finished stages are known again by their Jobs
    world.live_until("pretrain")
    ledger = world.cluster.stored(world.key).resource["status"]["ledger"]
    ledger["runs"] = ledger["runs"][:num_kept]
    world.settle()
    assert world.tries == ["destination/1", "prepare/1", "baseline/1", "pretrain/1"]
    assert world.running == "pretrain"


HOSTILE: st.SearchStrategy[Any] = st.sampled_from(
    [None, "", "x" * 5000, "Paused", "2026-99-99T00:00:00Z", -1, 0, 10**400, 1.5, True, [], {},
     [[]], {"a": {}}, ["x"] * 1000, "a b c", "1e400"]
)  # fmt: skip


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, item in items:
        found += [(*prefix, key), *places(item, (*prefix, key))]
    return found


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["prepare", "pretrain", "evaluate", "finetune", "verify"]),
    st.lists(st.tuples(st.integers(0, 10**6), HOSTILE, st.booleans()), min_size=1, max_size=4),
)
def test_no_status_whatever_is_in_it_stops_the_planner(
    stage: str, changes: list[tuple[int, Any, bool]]
) -> None:
    world = lived(stage)
    raw = world.cluster.observe(world.key)
    assert raw.resource is not None
    resource = json.loads(json.dumps(raw.resource))
    for number, value, is_removed in changes:
        known = places(resource["status"])
        place = known[number % len(known)]
        holder = resource["status"]
        for part in place[:-1]:
            holder = holder[part]
        if is_removed:
            del holder[place[-1]]
        else:
            holder[place[-1]] = copy.deepcopy(value)
    observed = observe(
        resource, raw.profile, all_states(raw.children, raw.now), raw.now, instance="dapt/dapt"
    )
    plan = decide(observed, LAUNCHERS["IndexedJob"])
    if plan.status is not None:
        json.dumps(plan.status.to_dict(), allow_nan=False)
        again = read_stored_status(plan.status.to_dict())
        assert again.left_out == ()


def test_the_status_that_the_api_server_gives_a_new_object_is_an_empty_one() -> None:
    begins = adaptation_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][
        "status"
    ]
    world = World()
    raw = world.cluster.observe(world.key)
    assert raw.resource is not None

    def first_plan(status: dict[str, Any]) -> Any:
        runs = all_states(raw.children, raw.now)
        resource = {**raw.resource, "status": status} if raw.resource else {}
        observed = observe(resource, raw.profile, runs, raw.now, contents=raw.contents)
        return decide(observed, LAUNCHERS["IndexedJob"])

    assert begins["default"]["observedGeneration"] == -1
    assert first_plan(begins["default"]) == first_plan({})
