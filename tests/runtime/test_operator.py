"""Parts of the operator as a whole that need no cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from dapt_operator.cluster.errors import ConflictError
from dapt_operator.cluster.kubernetes import (
    ApiUnavailableError,
    Connection,
    Leadership,
    NotLeaderError,
    RequestRefusedError,
    Store,
)
from dapt_operator.cluster.port import Key
from dapt_operator.plan.decide import Plan
from dapt_operator.runtime import operator
from dapt_operator.runtime.control import Control, is_finished
from dapt_operator.runtime.operator import INTERNAL_ERRORS, NOT_LEADER_SECONDS, Operator
from dapt_operator.runtime.settings import Settings
from dapt_operator.runtime.watching.store_updater import StoreUpdater
from support.api_double import ApiDouble, Odd

KEY = Key("team", "clinical")


@pytest.fixture
def service() -> Operator:
    return Operator(Settings(), Connection("http://127.0.0.1:9"))


def samples_of(service: Operator) -> dict[str, float]:
    families = text_string_to_metric_families(service.metrics_page().decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def resource(name: str = "clinical", profile: str | None = "bench", **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": "5"},
        "spec": {} if profile is None else {"profile": profile},
        "status": status,
    }


def profile(name: str = "bench", version: str = "7") -> dict[str, Any]:
    return {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "AdaptationProfile",
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": version},
        "spec": {},
    }


def test_a_note_wakes_whom_it_concerns() -> None:
    woken: list[str] = []
    notes = StoreUpdater(Store(), lambda key, urgency: woken.append(key.name))
    notes.put(resource("one"))
    notes.put(resource("two", profile="other"))
    notes.put(resource("any", profile=None))
    assert woken == ["one", "two", "any"]
    woken.clear()
    notes.put(profile("bench"))
    assert sorted(woken) == ["any", "one"], "those that name it, and those that take the default"
    woken.clear()
    notes.remove(resource("two", profile="other"))
    assert woken == ["two"]


@pytest.mark.parametrize(
    ("conditions", "finished"),
    [
        ([], False),
        ([{"type": "Finished", "status": "False"}], False),
        ([{"type": "Ready", "status": "True"}], False),
        ([{"type": "Finished", "status": "True"}], True),
    ],
)
def test_finished_resource_is_recognized_by_its_condition(
    conditions: list[dict[str, str]], finished: bool
) -> None:
    assert is_finished(resource(conditions=conditions)) is finished


def test_missing_resource_is_not_finished() -> None:
    assert not is_finished(None)


def test_reconcile_without_the_lease_is_queued_again_without_a_log_line(
    service: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Plan:
        raise NotLeaderError("PUT /status: the Lease is not held")

    monkeypatch.setattr(operator, "reconcile", refused)
    with structlog.testing.capture_logs() as logged:
        assert service.reconcile_one(KEY) == NOT_LEADER_SECONDS
    assert logged == []


def test_reconcile_returns_the_requeue_delay_of_the_plan(
    service: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def looked(*_: Any, **keywords: Any) -> Plan:
        asked.update(keywords)
        return Plan(requeue_after=12.5)

    monkeypatch.setattr(operator, "reconcile", looked)
    assert service.reconcile_one(KEY) == 12.5
    assert (asked["local"], asked["instance"]) == (False, "default/dapt")
    samples = samples_of(service)
    assert samples["dapt_reconcile_duration_seconds_count"] == 1.0
    assert samples["dapt_reconcile_errors_total"] == 0.0


def test_nothing_is_reconciled_again_while_nothing_changes_and_nothing_is_due(
    service: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_reconciles = 0

    def counted(*_: Any, **__: Any) -> Plan:
        nonlocal num_reconciles
        num_reconciles += 1
        return Plan(requeue_after=60.0)

    monkeypatch.setattr(operator, "reconcile", counted)
    assert service.reconcile_one(KEY) == 60.0
    left = service.reconcile_one(KEY)
    assert left is not None
    assert 0.0 < left <= 60.0
    assert num_reconciles == 1
    service.notice(KEY)
    assert service.reconcile_one(KEY) == 60.0
    assert num_reconciles == 2


def test_a_change_during_a_reconcile_is_not_taken_as_seen(
    service: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_reconciles = 0

    def interrupted(*_: Any, **__: Any) -> Plan:
        nonlocal num_reconciles
        num_reconciles += 1
        if num_reconciles == 1:
            service.notice(KEY)
        return Plan()

    monkeypatch.setattr(operator, "reconcile", interrupted)
    assert service.reconcile_one(KEY) is None
    service.reconcile_one(KEY)
    service.reconcile_one(KEY)
    assert num_reconciles == 2


def test_reconcile_error_is_logged_with_the_retry_delay_and_counted(service: Operator) -> None:
    with structlog.testing.capture_logs() as logged:
        service.report_error(KEY, RuntimeError("what"), 0.4)
    (line,) = logged
    assert line["event"] == "reconcile failed, retrying"
    assert (line["namespace"], line["name"], line["error"]) == ("team", "clinical", "RuntimeError: what")
    assert line["again_after_seconds"] == 0.4
    samples = samples_of(service)
    assert samples["dapt_reconcile_errors_total"] == 1.0


# --- errors that stay ---

PATH = "/apis/dapt.dev/v1alpha1/namespaces/team/domainadaptations/clinical"


@pytest.fixture
def double() -> Iterator[ApiDouble]:
    with ApiDouble() as server:
        server.add(PATH, resource(phase="Pretraining", ledger={"runs": "odd"}))
        yield server


@pytest.fixture
def acting(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """An operator that holds the Lease."""
    monkeypatch.setattr(Leadership, "is_held", lambda _: True)
    return Operator(Settings(), double.connection())


def fails(service: Operator, error: Exception, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    def failing(*_: Any, **__: Any) -> Plan:
        raise error

    monkeypatch.setattr(operator, "reconcile", failing)
    for _ in range(times):
        service.notice(KEY)
        with pytest.raises(type(error)):
            service.reconcile_one(KEY)


def test_error_that_stays_is_reported_once_and_the_rest_of_the_status_stays(
    acting: Operator, double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(acting, KeyError("runs"), monkeypatch, INTERNAL_ERRORS + 2)
    status = double.objects[PATH]["status"]
    assert status["ledger"] == {"runs": "odd"}
    assert status["phase"] == "Pretraining"
    (stalled,) = [item for item in status["conditions"] if item["type"] == "Stalled"]
    assert (stalled["status"], stalled["reason"]) == ("True", "InternalError")
    assert "KeyError: 'runs'" in stalled["message"]
    assert len(double.sent("PUT")) == 1
    (event,) = double.sent("POST .*/events")
    assert (event.body["type"], event.body["reason"]) == ("Warning", "InternalError")


def test_error_that_passes_is_not_reported(
    acting: Operator, double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        fails(acting, KeyError("runs"), monkeypatch, INTERNAL_ERRORS - 1)
        monkeypatch.setattr(operator, "reconcile", lambda *_, **__: Plan())
        acting.reconcile_one(KEY)
    assert double.requests == []


@pytest.mark.parametrize(
    ("error", "is_reported"),
    [
        (ApiUnavailableError("PUT /x", 503, "", "away"), False),
        (ConflictError("somebody wrote"), False),
        (RequestRefusedError("PUT /x", 422, "Invalid", "status.x: too long"), True),
    ],
)
def test_error_of_the_api_server_is_reported_when_it_refuses_a_write(
    acting: Operator, double: ApiDouble, monkeypatch: pytest.MonkeyPatch, error: Exception, is_reported: bool
) -> None:
    fails(acting, error, monkeypatch, INTERNAL_ERRORS)
    assert bool(double.sent("PUT")) is is_reported


def test_report_that_cannot_be_written_does_not_hide_the_error(
    acting: Operator, double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.odd("PUT", Odd(422, {}, b'{"reason":"Invalid","message":"status is not valid"}'))
    with structlog.testing.capture_logs() as logged:
        fails(acting, KeyError("runs"), monkeypatch, INTERNAL_ERRORS)
    (line,) = logged
    assert line["event"] == "an internal error could not be reported in the status"
    assert "422 Invalid: status is not valid" in line["error"]


def test_before_the_first_list_it_is_not_ready(service: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert service.readiness() == "the cluster's objects have not been listed yet"
    monkeypatch.setattr(Control, "has_listed", True)
    assert service.readiness() == ""
