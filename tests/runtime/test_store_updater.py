"""Tests what a watched object wakes, and how urgently."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from dapt_operator.cluster.kubernetes import Store
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


@pytest.mark.parametrize("status", [{"digests": 7}, {"digests": {"owner": None}}, {}, None])
def test_status_that_names_no_owner_is_nobodys(status: Any) -> None:
    updater = StoreUpdater(Store(), Woken(), instance="team/dapt")
    with structlog.testing.capture_logs() as logged:
        updater.put(adaptation() | {"status": status})
    assert logged == []
