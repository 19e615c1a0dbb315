"""Tests what kopf is sent and what it passes on, before an API server in the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from dapt_operator.cluster.kubernetes.client import METADATA_ALONE
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.runtime.watching.watched_kinds import watched_kind
from dapt_operator.runtime.watching.watches import Watch
from support.cluster_objects import KEY, adaptation
from support.pod_objects import wait_until
from support.watched_double import WatchedDouble

PATH = KINDS["DomainAdaptation"].path(KEY.namespace, KEY.name)


class Notes:
    """Takes what kopf passes on."""

    def __init__(self) -> None:
        self.compared: list[dict[str, Any]] = []
        self.stored: list[dict[str, Any]] = []

    def put(self, body: Any) -> None:
        self.stored.append(body)

    def compare(self, body: Any) -> None:
        self.compared.append(body)

    def remove(self, body: Any) -> None:
        raise AssertionError("nothing is deleted")


@contextmanager
def watching(double: WatchedDouble, notes: Notes) -> Iterator[None]:
    watch = Watch(
        notes, double.connection(), lambda: (watched_kind("DomainAdaptation"),), namespace=KEY.namespace
    )
    watch.start()
    try:
        yield
    finally:
        assert watch.stop(10)


def test_lists_of_a_watch_have_metadata_alone_and_its_events_are_whole() -> None:
    notes = Notes()
    with WatchedDouble() as double:
        listed = double.add(PATH, adaptation())
        with watching(double, notes):
            wait_until(lambda: bool(notes.compared), "the list")
            changed = double.add(PATH, adaptation(profile="other"))
            wait_until(lambda: bool(notes.stored), "the event")
        requests = double.sent("GET .*/domainadaptations$")
    assert notes.compared == [{"kind": "DomainAdaptation", "metadata": listed["metadata"]}]
    assert notes.stored == [changed]
    assert {bool(request.query.get("watch")): request.headers["Accept"] for request in requests} == {
        False: METADATA_ALONE,
        True: "*/*",
    }


def test_watch_begins_with_an_empty_list() -> None:
    notes = Notes()
    with WatchedDouble() as double, structlog.testing.capture_logs() as logged, watching(double, notes):
        wait_until(lambda: any("watch" in request.query for request in double.requests), "the watch")
        created = double.add(PATH, adaptation())
        wait_until(lambda: bool(notes.stored), "the event")
    assert notes.stored == [created]
    assert logged == []
