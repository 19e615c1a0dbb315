"""Registers kopf handlers that pass every watched object on, and do nothing else.

A list has nothing but the metadata of its objects (see `session.py`): the sink compares them with what it has.

kopf calls an index function for every object that a list or a watch reports, before any other handler runs, so it is
the index function that passes objects on. It returns nothing, so kopf's own index stays empty. A deletion reaches only
`on.event`, which also says whether an object comes from a list. Neither needs a finalizer, an annotation or a stored
state of kopf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

from dapt_operator.runtime.watching.kopf_library import kopf
from dapt_operator.runtime.watching.session import METADATA_KIND
from dapt_operator.runtime.watching.watched_kinds import WatchedKind
from dapt_operator.stage_run import Manifest

Credentials: TypeAlias = kopf.ConnectionInfo | kopf.AiohttpSession


class ObjectSink(Protocol):
    """Receives watched objects. Its methods are called from kopf's event loop, so they must not block."""

    def put(self, body: Manifest) -> None:
        """Take an object that exists or has changed."""
        ...

    def compare(self, body: Manifest) -> None:
        """Take the kind and the metadata of an object that a list has."""
        ...

    def remove(self, body: Manifest) -> None:
        """Take the last state of a deleted object."""
        ...


def register(
    registry: kopf.OperatorRegistry,
    sink: ObjectSink,
    kinds: Iterable[WatchedKind],
    login: Callable[[], Credentials],
    configure: Callable[[kopf.OperatorSettings], None],
    on_listed: Callable[[], None] = lambda: None,
) -> None:
    """Register every handler.

    Args:
        registry: kopf's registry, for one run of kopf.
        sink: receives the objects.
        kinds: kinds to watch; each must exist.
        login: returns credentials; called again whenever the API server no longer accepts the old ones.
        configure: sets kopf's settings.
        on_listed: called for each object that comes from a list: a watch began, or began again because the API server
            no longer kept what came after its last event. A deletion in between is reported by neither.
    """

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> Credentials:
        return login()

    async def put(body: kopf.Body, resource: kopf.Resource, **_: Any) -> None:
        if body.get("kind") == METADATA_KIND:
            sink.compare({"kind": resource.kind, "metadata": dict(body.metadata)})
        else:
            sink.put(dict(body))  # a copy: kopf's own view would keep the whole object alive

    async def remove(event: kopf.RawEvent, **_: Any) -> None:
        if event["type"] is None:
            on_listed()
        else:
            sink.remove(event["object"])

    # The index function is not called for a deletion, and `on.event` is called for every event.
    def is_listed_or_deleted(type: str | None, **_: Any) -> bool:
        return type in (None, "DELETED")

    for group, version, plural in kinds:
        # Ids of their own: kopf keeps one index for each id.
        kopf.index(group, version, plural, id=f"{plural}-put", registry=registry)(put)
        kopf.on.event(
            group, version, plural, id=f"{plural}-remove", when=is_listed_or_deleted, registry=registry
        )(remove)
