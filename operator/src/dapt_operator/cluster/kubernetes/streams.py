"""Reads answers that come line by line for as long as the server sends: watches, and logs that are followed.

The client's own requests have a limit on the whole answer; here only the wait for the next line has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlencode

import urllib3

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cluster.answers import reason_and_message
from dapt_operator.cluster.kubernetes.client import CONNECT_SECONDS
from dapt_operator.cluster.kubernetes.connection import Connection
from dapt_operator.cluster.kubernetes.errors import ApiError, ApiUnavailableError

MAX_LINE_BYTES: Final = 32 * 1024 * 1024
_CHUNK_BYTES: Final = 64 * 1024
_MAX_ERROR_BYTES: Final = 64 * 1024


def stream_lines(
    connection: Connection, path: str, query: Mapping[str, str | int], silence_seconds: float
) -> Iterator[bytes]:
    """Yield each line of an answer as it comes, without its line break, until the server ends the answer.

    Args:
        connection: where the API server is and who we are there.
        path: of the request, a GET.
        query: of the request.
        silence_seconds: longest wait for the next bytes.

    Raises:
        ApiError: the request was refused.
        ApiUnavailableError: no answer, or the connection was cut.
    """
    headers = {"Accept": "application/json, */*", "User-Agent": f"dapt/{PRODUCT_VERSION}"}
    url = f"{connection.server}{path}?{urlencode(query)}"
    try:
        if authorization := connection.authorization.header():
            headers["Authorization"] = authorization
        response = connection.pool(1).urlopen(
            "GET",
            url,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=silence_seconds),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            if response.status != 200:
                raise _refusal(path, response.status, response.read(_MAX_ERROR_BYTES))
            yield from _lines(response)
        finally:
            response.close()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ApiUnavailableError(f"GET {path}", 0, type(error).__name__, str(error)) from None


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    rest = b""
    while piece := response.read1(_CHUNK_BYTES):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            raise urllib3.exceptions.HTTPError(f"line of more than {MAX_LINE_BYTES} bytes")
    if rest:
        yield rest


def _refusal(path: str, status: int, content: bytes) -> ApiError:
    return ApiError(f"GET {path}", status, *reason_and_message(content))
