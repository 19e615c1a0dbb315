"""Parts of the operator as a whole that need no cluster."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from kubernetes.client import Configuration

from dapt_operator.cluster.kubernetes import NotLeaderError, Store
from dapt_operator.cluster.port import Key
from dapt_operator.plan.decide import Plan
from dapt_operator.runtime import operator
from dapt_operator.runtime.operator import Operator, StoreUpdater, is_finished
from dapt_operator.runtime.settings import Settings

KEY = Key("team", "clinical")


@pytest.fixture
def service() -> Operator:
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:9"
    return Operator(Settings(), configuration)


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
    notes = StoreUpdater(Store(), lambda key: woken.append(key.name))
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


def test_reconcile_without_the_lease_ends_without_a_log_line(
    service: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Plan:
        raise NotLeaderError("PUT /status: the Lease is not held")

    monkeypatch.setattr(operator, "reconcile", refused)
    with structlog.testing.capture_logs() as logged:
        assert service.reconcile_one(KEY) is None
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
    assert asked == {"local": False, "instance": "default/dapt"}
    samples = {
        sample.name: sample.value for family in service.registry.collect() for sample in family.samples
    }
    assert samples["dapt_reconcile_duration_seconds_count"] == 1.0
    assert samples["dapt_reconcile_errors_total"] == 0.0


def test_reconcile_error_is_logged_with_the_retry_delay_and_counted(service: Operator) -> None:
    with structlog.testing.capture_logs() as logged:
        service.report_error(KEY, RuntimeError("what"), 0.4)
    (line,) = logged
    assert line["event"] == "reconcile failed, retrying"
    assert (line["namespace"], line["name"], line["error"]) == ("team", "clinical", "RuntimeError: what")
    assert line["again_after_seconds"] == 0.4
    samples = {
        sample.name: sample.value for family in service.registry.collect() for sample in family.samples
    }
    assert samples["dapt_reconcile_errors_total"] == 1.0


def test_before_the_first_list_it_is_not_ready(service: Operator) -> None:
    assert service.readiness() == "the cluster's objects have not been listed yet"
    service.has_listed = True
    assert service.readiness() == ""
