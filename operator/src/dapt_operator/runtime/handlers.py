"""What kopf calls: handlers that take notes and wake the queue, and do nothing else.

An index function is called for every object that a list or watch tells of, before kopf lets any other handler run;
so it is the one that takes the notes. It returns nothing, so kopf's own index stays empty. A deletion reaches only
`on.event`. Neither needs a finalizer, an annotation or a stored state of kopf's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import kopf


class Notes(Protocol):
    """Where what was seen goes. Called from kopf's event loop, so neither may wait."""

    def put(self, body: Mapping[str, Any]) -> None:
        """An object is there, or has changed."""
        ...

    def remove(self, body: Mapping[str, Any]) -> None:
        """An object is gone."""
        ...


def register(
    registry: kopf.OperatorRegistry,
    notes: Notes,
    kinds: Iterable[tuple[str, str, str]],
    login: Callable[[], kopf.ConnectionInfo],
    configure: Callable[[kopf.OperatorSettings], None],
) -> None:
    """Register every handler.

    Args:
        registry: kopf's, of one run of it.
        notes: what the handlers write to.
        kinds: group, version and plural of what is watched; each must exist.
        login: credentials, asked for again whenever the API server no longer takes the old ones.
        configure: sets kopf.
    """

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return login()

    async def seen(body: kopf.Body, **_: Any) -> None:
        notes.put(dict(body))

    async def gone(event: kopf.RawEvent, **_: Any) -> None:
        notes.remove(event["object"])

    def is_deletion(type: str | None, **_: Any) -> bool:
        return type == "DELETED"

    for group, version, plural in kinds:
        kopf.index(group, version, plural, id=f"{plural}-seen", registry=registry)(seen)
        kopf.on.event(group, version, plural, id=f"{plural}-gone", when=is_deletion, registry=registry)(gone)
