"""Tests the start of the parts, and what is visited without a change; the API server is in the process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from dapt_operator.cluster.kubernetes import KubernetesCluster, Leadership, Store
from dapt_operator.cluster.port import Key
from dapt_operator.runtime.control import Control, is_settled
from dapt_operator.runtime.settings import Settings
from dapt_operator.runtime.work_queue import WorkQueue
from support.api_double import ApiDouble, Odd
from support.cluster_objects import adaptation
from support.pod_objects import wait_until

FORBIDDEN = Odd(403, {}, b'{"reason":"Forbidden","message":"no right"}')
FINISHED = {"type": "Finished", "status": "True"}


class Started:
    """The parts of an operator that reconciles nothing, and counts for which adaptations it would."""

    def __init__(self, double: ApiDouble, namespaces: tuple[str, ...]) -> None:
        settings = Settings(namespaces=namespaces, resync_seconds=0.2, workers=1)
        store, connection = Store(), double.connection()
        self.reconciled: Counter[Key] = Counter()
        self.queue: WorkQueue[Key] = WorkQueue(self._count, workers=1)
        self.lease = Leadership(connection, "health", "dapt", "me")
        self.cluster = KubernetesCluster(
            connection, store, on_change=self.queue.wake, namespaces=settings.namespaces
        )
        self.control = Control(settings, double.url, self.cluster, store, self.lease, self.queue)
        self.ending = threading.Event()
        self._thread = threading.Thread(
            target=self.control.run, args=((), lambda: None, self.ending), daemon=True
        )

    def _count(self, key: Key) -> None:
        self.reconciled[key] += 1

    def __enter__(self) -> Started:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._thread.join(30)
        self.queue.stop(30)
        self.lease.stop()
        self.cluster.close()


@pytest.fixture
def double() -> Iterator[ApiDouble]:
    with ApiDouble() as server:
        yield server


def add(double: ApiDouble, namespace: str, name: str, **content: Any) -> Key:
    body = adaptation() | content
    body["metadata"] = body["metadata"] | {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{namespace}-{name}",
    }
    double.add(f"/apis/dapt.dev/v1alpha1/namespaces/{namespace}/domainadaptations/{name}", body)
    return Key(namespace, name)


def test_forbidden_namespace_is_logged_once_and_the_other_is_worked_on(double: ApiDouble) -> None:
    good, bad = add(double, "finance", "good"), add(double, "health", "bad")
    with structlog.testing.capture_logs() as logged, Started(double, ("finance", "health")) as started:
        double.odd("GET .*/namespaces/health/(domain|jobs$|pods)", *[FORBIDDEN] * 12)
        wait_until(lambda: started.reconciled[good] > 0, "the good one")
        assert started.reconciled[bad] == 0, "nothing is decided about what cannot be listed"
        wait_until(lambda: started.reconciled[bad] > 0, "the right that is back")
    warnings = [line for line in logged if line["log_level"] == "warning"]
    assert sorted(line["kind"] for line in warnings) == ["DomainAdaptation", "Job", "Pod"]
    assert {(line["event"], line["namespace"]) for line in warnings} == {
        ("objects cannot be listed, trying again", "health")
    }
    assert {line["kind"] for line in logged if line["event"] == "objects can be listed again"} == {
        "DomainAdaptation",
        "Job",
        "Pod",
    }


def test_adaptation_whose_jobs_cannot_be_listed_waits_for_them(double: ApiDouble) -> None:
    good, bad = add(double, "finance", "good"), add(double, "health", "bad")
    double.odd("GET .*/namespaces/health/jobs$", *[FORBIDDEN] * 8)
    with Started(double, ("finance", "health")) as started:
        wait_until(lambda: started.reconciled[good] > 0, "the good one")
        assert double.has_odd, "the Jobs are still forbidden"
        started.control.wake(bad)
        assert started.reconciled[bad] == 0
        wait_until(lambda: started.reconciled[bad] > 0, "the right that is back")
        assert not double.has_odd, "nothing was decided before"


def test_finished_adaptation_is_visited_again_until_it_was_cleaned_up(double: ApiDouble) -> None:
    ended = {"conditions": [FINISHED]}
    settled = add(double, "health", "settled", status=ended)
    due = add(double, "health", "due", status=ended, spec={"cleanup": {"afterSeconds": 60}})
    live = add(double, "health", "live", status={})
    with Started(double, ()) as started:
        wait_until(lambda: min(started.reconciled[due], started.reconciled[live]) > 2, "visits")
        assert started.reconciled[settled] == 1, "at the start alone"


@pytest.mark.parametrize(
    ("spec", "status", "settled"),
    [
        ({}, {}, False),
        ({}, {"conditions": [FINISHED]}, True),
        ({"cleanup": {"afterSeconds": 0}}, {"conditions": [FINISHED]}, False),
        ({"cleanup": {"afterSeconds": 0}}, {"conditions": [FINISHED], "ledger": {"cleaned": "now"}}, True),
        ({"cleanup": 3}, {"conditions": [FINISHED]}, False),
        ({}, {"conditions": ["odd"]}, False),
    ],
)
def test_settled_adaptation_has_finished_and_needs_no_cleanup(
    spec: dict[str, Any], status: dict[str, Any], settled: bool
) -> None:
    assert is_settled({"spec": spec, "status": status}) is settled
