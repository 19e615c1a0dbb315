"""What kopf is given: handlers that take notes, and none that would make it write to an object."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import kopf
import pytest
from kopf._cogs.structs import ephemera, references
from kopf._core.actions import lifecycles
from kopf._core.engines import indexing
from kopf._core.reactor import inventory, processing

from dapt_operator.runtime.watching import handlers
from dapt_operator.runtime.watching.kopf_settings import set_kopf
from dapt_operator.runtime.watching.watched_kinds import JOBSETS, WATCHED


class Notes:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def put(self, body: Mapping[str, Any]) -> None:
        assert type(body) is dict, "kopf's own views keep the whole object alive"
        self.seen.append(("put", body["metadata"]["name"]))

    def compare(self, body: Mapping[str, Any]) -> None:
        assert set(body) == {"kind", "metadata"}
        assert type(body["metadata"]) is dict
        self.seen.append(("compare", f"{body['kind']}/{body['metadata']['name']}"))

    def remove(self, body: Mapping[str, Any]) -> None:
        self.seen.append(("remove", body["metadata"]["name"]))


def registry_for(notes: Notes) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    credentials = kopf.ConnectionInfo(server="https://registry.example")
    handlers.register(registry, notes, (*WATCHED, JOBSETS), lambda: credentials, set_kopf)
    return registry


def test_no_handler_needs_a_finalizer_or_an_annotation() -> None:
    registry = registry_for(Notes())
    assert list(registry._changing.get_all_handlers()) == []
    assert list(registry._spawning.get_all_handlers()) == []
    assert list(registry._webhooks.get_all_handlers()) == []
    selectors = [handler.selector for handler in registry._watching.get_all_handlers()]
    watched = {selector and (selector.plural or selector.any_name) for selector in selectors}
    assert watched == {"domainadaptations", "adaptationprofiles", "jobs", "pods", "jobsets"}


@pytest.mark.parametrize(
    ("event", "kind", "noted"),
    [
        (None, "PartialObjectMetadata", ("compare", "Pod/p")),
        (None, "Pod", ("put", "p")),
        ("ADDED", "Pod", ("put", "p")),
        ("MODIFIED", "Pod", ("put", "p")),
        ("DELETED", "Pod", ("remove", "p")),
    ],
    ids=["listed", "listed as a whole", "added", "modified", "deleted"],
)
def test_each_event_is_noted_once_and_nothing_is_sent(
    event: str | None, kind: str, noted: tuple[str, str]
) -> None:
    notes = Notes()
    registry = registry_for(notes)
    settings = kopf.OperatorSettings()
    set_kopf(settings)
    indexers = indexing.OperatorIndexers()
    indexers.ensure(registry._indexing.get_all_handlers())
    pods = references.Resource(group="", version="v1", plural="pods", kind="Pod", namespaced=True)
    body = {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1"},
    }

    async def once() -> str | None:
        return await processing.process_resource_event(
            lifecycle=lifecycles.all_at_once,
            registry=registry,
            settings=settings,
            indexers=indexers,
            memories=inventory.ResourceMemories(),
            memobase=ephemera.AnyMemo(ephemera.Memo()),
            resource=pods,
            raw_event={"type": event, "object": body},  # type: ignore[typeddict-item]
            event_queue=asyncio.Queue(),
        )

    assert asyncio.run(once()) is None, "a resource version: kopf has patched the object"
    assert notes.seen == [noted]
    assert all(not indexer.index for indexer in indexers.values()), "kopf's own index stays empty"
