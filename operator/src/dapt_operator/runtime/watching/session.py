"""Lets kopf list nothing but metadata.

kopf holds every object of its first lists until the last one has arrived: of a thousand grown adaptations 250 MiB. The
operator has read them by then, page by page, and kopf's lists only say where its watches begin. So their items come
without contents, and of those that changed meanwhile the contents are read (`StoreUpdater.compare`). The events of a
watch are whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import aiohttp

from dapt_operator.cluster.kubernetes import Connection
from dapt_operator.cluster.kubernetes.client import METADATA_ALONE
from dapt_operator.runtime.watching.kopf_library import kopf

METADATA_KIND: Final = "PartialObjectMetadata"
"""Kind of the items of such a list, as the API server writes it, whatever they are."""


def login(connection: Connection) -> Callable[[], kopf.AiohttpSession]:
    """Return a function that returns a session with the current token, or the last one if the token is still the same.

    kopf calls it in its event loop, again whenever the API server no longer accepts the token, and takes the same
    session as a sign that there is no better one. It closes the sessions.

    Raises:
        OSError: by that function, when there is no token at the moment.
    """
    last: tuple[str, kopf.AiohttpSession] | None = None

    def log_in() -> kopf.AiohttpSession:
        nonlocal last
        authorization = connection.authorization.header()
        if last is None or last[0] != authorization:
            session = _session(connection, authorization)
            last = authorization, kopf.AiohttpSession(server=connection.server, aiohttp_session=session)
        return last[1]

    return log_in


def _session(connection: Connection, authorization: str) -> aiohttp.ClientSession:
    context = connection.ssl_context()
    return aiohttp.ClientSession(
        # Without a limit, since each watch keeps a connection.
        connector=aiohttp.TCPConnector(limit=0, ssl=True if context is None else context),
        headers={"Authorization": authorization} if authorization else None,
        proxy=connection.proxy or None,
        middlewares=(_list_metadata_alone,),
        response_class=_Response,
    )


class _Response(aiohttp.ClientResponse):
    """An answer in which an empty list of metadata is what kopf takes for an empty list."""

    async def json(self, **options: Any) -> Any:
        """Return the decoded answer."""
        answer = await super().json(**options)
        # The API server writes null for no items there, and an empty list in every other list.
        if isinstance(answer, dict) and answer.get("items", ()) is None:
            answer["items"] = []
        return answer


async def _list_metadata_alone(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    # Of what kopf requests, only lists have pages.
    if request.method == "GET" and "limit" in request.url.query:
        request.headers["Accept"] = METADATA_ALONE
    return await handler(request)
