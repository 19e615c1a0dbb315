"""Tests the conditions of an adaptation on which the operator itself fails."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from dapt_operator.api.v1alpha1.conditions import CONDITION_TYPES
from dapt_operator.api.v1alpha1.status import Condition
from dapt_operator.plan.status.internal_error import (
    error_message,
    healed_conditions,
    internal_error_conditions,
)
from dapt_operator.testing.invariants import check_conditions

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
THEN = "2026-01-30T12:00:00Z"
MESSAGE = error_message(KeyError("runs"), "1.2.3", "team/dapt")


def condition(
    type_: str, status: str = "False", reason: str = "Progressing", message: str = "m"
) -> dict[str, Any]:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": THEN,
        "observedGeneration": 1,
    }


def resource(*conditions: Any, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "a", "namespace": "b", "generation": 2},
        "spec": {},
        "status": {"phase": "Pretraining", "conditions": list(conditions)} | status,
    }


def reported(stored: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = internal_error_conditions(stored, MESSAGE, NOW)
    assert found is not None
    return {str(item["type"]): dict(item) for item in found}


def test_message_says_what_to_report() -> None:
    assert MESSAGE == (
        "the operator fails on this adaptation: KeyError: 'runs'; it tries again by itself; if this stays, report it"
        " with this message, version 1.2.3 and the log of the operator team/dapt"
    )


def test_message_of_the_same_error_is_equal_and_short() -> None:
    errors = [ValueError(f"{object()!r}\n  {900 * 'long '}") for _ in range(2)]
    first, second = (error_message(error, "1", "i") for error in errors)
    assert first == second
    assert len(first) < 800


def test_conditions_that_were_stored_stay_but_those_of_progress() -> None:
    stored = [
        condition("Accepted", "True", "Planned"),
        condition("Reconciling", "True", "StageRunning"),
        condition("GatesPassed", "Unknown", "GatesNotJudged"),
    ]
    found = reported(resource(*stored))
    assert list(found) == list(CONDITION_TYPES)
    assert found["Accepted"] == stored[0] | {"observedGeneration": 2}
    assert found["GatesPassed"] == stored[2] | {"observedGeneration": 2}
    assert (found["Stalled"]["status"], found["Stalled"]["reason"]) == ("True", "InternalError")
    assert found["Stalled"]["message"] == MESSAGE
    assert found["Reconciling"]["status"] == "False"
    assert found["Reconciling"]["lastTransitionTime"] == "2026-01-31T12:00:00Z"


@pytest.mark.parametrize(
    "stored",
    [
        resource(),
        resource(condition("Ready", "True", "Published"), condition("Finished", "True", "Published")),
        resource(7, {"type": "Ready"}, condition("Odd"), condition("Stalled", "Perhaps")),
        resource(condition("Ready", reason="OfAnotherVersion")),
        resource(conditions="none"),
        {"metadata": {"generation": 2}, "spec": {"suspend": True}, "status": {"phase": "Suspended"}},
    ],
    ids=["new", "published", "odd items", "odd reason", "no list", "suspended"],
)
def test_conditions_are_what_kstatus_reads_whatever_was_stored(stored: dict[str, Any]) -> None:
    found = internal_error_conditions(stored, MESSAGE, NOW)
    assert found is not None
    after = stored["status"] | {"conditions": found, "observedGeneration": 2}
    check_conditions({}, after, 2)


@pytest.mark.parametrize("status", [None, 7, []])
def test_status_that_is_no_mapping_gets_all_conditions(status: Any) -> None:
    assert list(reported({"metadata": {}, "status": status})) == list(CONDITION_TYPES)


def test_what_is_reported_already_is_not_written_again() -> None:
    stored = resource(condition("Stalled", "True", "InternalError", MESSAGE))
    assert internal_error_conditions(stored, MESSAGE, NOW) is None
    other = error_message(KeyError("other"), "1.2.3", "team/dapt")
    assert internal_error_conditions(stored, other, NOW) is not None


@pytest.mark.parametrize(
    ("reason", "ready", "stalled"),
    [("Published", "True", "False"), ("BudgetExhausted", "False", "True")],
)
def test_finished_adaptation_heals_to_how_it_ended(reason: str, ready: str, stalled: str) -> None:
    end = condition("Finished", "True", reason, "how it ended")
    broken = internal_error_conditions(resource(end, condition("Ready", ready, reason)), MESSAGE, NOW)
    assert broken is not None
    healed = {
        item.type: item
        for item in healed_conditions(tuple(Condition.model_validate(item) for item in broken), NOW)
    }
    assert (healed["Ready"].status, healed["Stalled"].status) == (ready, stalled)
    assert "InternalError" not in {item.reason for item in healed.values()} - {healed["Accepted"].reason}
    assert healed_conditions(tuple(healed.values()), NOW) == tuple(healed.values())
