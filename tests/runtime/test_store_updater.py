"""Tests what a watched object wakes, and how urgently."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from dapt_operator.cluster.kubernetes import Store, Summary
from dapt_operator.cluster.port import Key
from dapt_operator.runtime.watching.store_updater import StoreUpdater
from dapt_operator.runtime.work_queue import Urgency
from support.cluster_objects import KEY, adaptation, job, pod

LOST = {"exitCode": 75, "finishedAt": "2026-01-31T12:01:00Z"}
DONE = {"exitCode": 0, "finishedAt": "2026-01-31T12:01:00Z"}
FAILED = {"type": "Failed", "status": "True"}


class Woken:
    def __init__(self) -> None:
        self.calls: list[tuple[Key, Urgency]] = []

    def __call__(self, key: Key, *, urgency: Urgency) -> None:
        self.calls.append((key, urgency))


@pytest.mark.parametrize(
    ("body", "urgency"),
    [
        (pod(job()), Urgency.CHANGE),
        (pod(job(), phase="Failed"), Urgency.FAILURE),
        (pod(job(), ended=LOST), Urgency.FAILURE),
        (pod(job(), ended=DONE, phase="Succeeded"), Urgency.CHANGE),
        (job(), Urgency.CHANGE),
        (job(conditions=[FAILED]), Urgency.FAILURE),
    ],
    ids=["running", "failed pod", "a container failed", "succeeded", "job", "failed job"],
)
def test_failure_wakes_urgently(body: dict[str, Any], urgency: Urgency) -> None:
    woken = Woken()
    StoreUpdater(Store(), woken).put(body)
    assert woken.calls == [(KEY, urgency)]


def test_adaptation_of_another_installation_is_logged_once() -> None:
    updater = StoreUpdater(Store(), Woken(), instance="team/dapt")
    ours = adaptation() | {"status": {"digests": {"owner": "team/dapt"}}}
    foreign = adaptation(uid="other") | {"status": {"digests": {"owner": "elsewhere/dapt"}}}
    with structlog.testing.capture_logs() as logged:
        updater.put(adaptation())
        updater.put(ours)
        updater.put(foreign)
        updater.put(foreign | {"spec": {}})
    (line,) = logged
    assert line["event"] == "adaptation belongs to another installation and is left alone"
    assert (line["namespace"], line["name"], line["owner"]) == (KEY.namespace, KEY.name, "elsewhere/dapt")


def listed(body: dict[str, Any]) -> dict[str, Any]:
    """What a list has of an object."""
    return {"kind": body["kind"], "metadata": body["metadata"]}


def test_listed_object_is_read_unless_its_version_is_stored() -> None:
    woken, read = Woken(), list[tuple[str, str, str]]()
    updater = StoreUpdater(Store(), woken, read=lambda *object_id: read.append(object_id))
    old, new = job(version=7), job(version=8)
    updater.put(old)
    woken.calls.clear()
    updater.compare(listed(old))
    assert read == []
    updater.compare(listed(new))
    updater.compare(listed(adaptation()))
    assert read == [
        ("Job", KEY.namespace, new["metadata"]["name"]),
        ("DomainAdaptation", KEY.namespace, KEY.name),
    ]
    assert woken.calls == [], "whoever reads it wakes"


def test_list_that_confirms_an_own_write_wakes_once() -> None:
    woken, store = Woken(), Store()
    written = adaptation(version=9)
    store.put(written, is_own_write=True)
    updater = StoreUpdater(store, woken)
    updater.compare(listed(written))
    updater.compare(listed(written))
    assert woken.calls == [(KEY, Urgency.CHANGE)]


def test_listed_adaptation_of_another_installation_is_logged_once() -> None:
    store = Store(lambda resource: Summary((), owner="elsewhere/dapt"))
    foreign = adaptation()
    store.put(foreign)
    updater = StoreUpdater(store, Woken(), instance="team/dapt")
    with structlog.testing.capture_logs() as logged:
        updater.compare(listed(foreign))
        updater.compare(listed(foreign))
        updater.put(foreign | {"status": {"digests": {"owner": "elsewhere/dapt"}}})
    assert [line["owner"] for line in logged] == ["elsewhere/dapt"]


@pytest.mark.parametrize("status", [{"digests": 7}, {"digests": {"owner": None}}, {}, None])
def test_status_that_names_no_owner_is_nobodys(status: Any) -> None:
    updater = StoreUpdater(Store(), Woken(), instance="team/dapt")
    with structlog.testing.capture_logs() as logged:
        updater.put(adaptation() | {"status": status})
    assert logged == []
