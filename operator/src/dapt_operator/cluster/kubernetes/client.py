"""Sends JSON to the API server over one connection pool: no model classes, a limit on every wait, safe retries.

Every write of ours may be sent twice: names are functions of the run key (a second POST is answered with 409), a status
carries its resource version, a deletion the object's uid. So every request is sent again after 429, 5xx and a cut
connection, a few times and within seconds; afterwards the backoff of the work queue takes over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar
from urllib.parse import urlencode

import urllib3

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cluster.answers import (
    decoded_object,
    decoded_page,
    reason_and_message,
    whole_number,
)
from dapt_operator.cluster.kubernetes.connection import Connection
from dapt_operator.cluster.kubernetes.errors import (
    ApiError,
    ApiUnavailableError,
    NotLeaderError,
    RequestRefusedError,
)
from dapt_operator.stage_run import Manifest

CONNECT_SECONDS: Final = 3.0
ATTEMPT_SECONDS: Final = 10.0
"""Limit of one attempt. `lease.py` relies on it: no write arrives later than this after the Lease was checked."""
ATTEMPTS: Final = 4
MAX_CONNECTIONS: Final = 32
PAGE_ITEMS = 50
"""Objects of one page of a list: an adaptation with a long history takes 100 KB, and six times as much once parsed."""
FIRST_PAUSE_SECONDS = 0.2
MAX_ANSWER_BYTES = 256 * 1024 * 1024
_LONGEST_PAUSE_SECONDS: Final = 5.0
_CHUNK_BYTES: Final = 256 * 1024
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_ANYTHING: Final = "application/json, */*"
METADATA_ALONE: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""`Accept` of a list whose items have nothing but their metadata."""
_REFUSED: Final = frozenset({400, 403, 405, 413, 422})
_WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_log = logging.getLogger(__name__)

Query = Mapping[str, str | int]
Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Limits:
    """Bounds of one request."""

    attempts: int = ATTEMPTS
    seconds: float = ATTEMPT_SECONDS
    """Time for each attempt."""
    first_bytes: int | None = None
    """Bytes of the answer that are read; None: all, and a huge answer is an error."""


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True)
class _Request:
    method: str
    path: str
    query: Query
    body: bytes | None = None
    content_type: str = "application/json"
    accept: str = _ANYTHING

    @property
    def path_and_query(self) -> str:
        return self.path + (f"?{urlencode(self.query)}" if self.query else "")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes


class ApiServerClient:
    """A client of the API server, usable from any number of threads."""

    def __init__(
        self,
        connection: Connection,
        may_write: Callable[[], bool] = lambda: True,
        field_manager: str = "dapt",
    ) -> None:
        """
        Args:
            connection: where the API server is and who we are there.
            may_write: called before each attempt of a write.
            field_manager: owner of the fields that we write.
        """
        self._write_query = {"fieldManager": field_manager}
        self._connection = connection
        self._pool = connection.pool(MAX_CONNECTIONS)
        self._may_write = may_write
        self._closed = threading.Event()

    def close(self) -> None:
        """End all pauses between attempts; a request that fails from now on is not sent again."""
        self._closed.set()
        # Idle connections end now; one that still carries a request is closed when its answer was read.
        self._pool.clear()

    # --- verbs ---

    def get(
        self,
        path: str,
        query: Query | None = None,
        *,
        attempts: int = ATTEMPTS,
        timeout_seconds: float = ATTEMPT_SECONDS,
    ) -> Manifest | None:
        """Return an object or a list; None when it does not exist (404).

        Raises:
            ApiError: see `errors`.
        """
        try:
            return self._json("GET", path, query=query, limits=Limits(attempts, timeout_seconds))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def text(self, path: str, query: Query, *, max_bytes: int, timeout_seconds: float) -> bytes:
        """Return the first bytes of an answer that is not JSON; one attempt.

        Raises:
            ApiError: see `errors`.
        """
        limits = Limits(attempts=1, seconds=timeout_seconds, first_bytes=max_bytes)
        return self._send(_Request("GET", path, query), limits, bytes)

    def pages(
        self, path: str, query: Query | None = None, *, metadata_alone: bool = False, attempts: int = ATTEMPTS
    ) -> Iterator[Manifest]:
        """Yield a list page by page; all pages show the same moment.

        Args:
            path: of the collection.
            query: selectors, or `resourceVersion=0` for a list from the server's memory, which may be a moment old.
            metadata_alone: whether the items have nothing but their metadata.
            attempts: at each page.

        Raises:
            ApiError: see `errors`; 410 when reading took so long that the server no longer keeps that moment.
        """
        page_query: dict[str, str | int] = {"limit": PAGE_ITEMS, **(query or {})}
        # Only reads may take that long: the Lease relies on the limit of a write.
        limits = replace(DEFAULT_LIMITS, attempts=attempts, seconds=3 * ATTEMPT_SECONDS)
        accept = METADATA_ALONE if metadata_alone else _ANYTHING
        while True:
            page = self._send(_Request("GET", path, page_query, accept=accept), limits, decoded_page)
            yield page
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            # The token holds the moment of the first page and the server's place in the list; limit and selectors must
            # stay, and another moment must not be asked for.
            page_query = page_query | {"continue": str(token)}
            page_query.pop("resourceVersion", None)

    def post(
        self,
        path: str,
        body: Manifest,
        *,
        attempts: int = ATTEMPTS,
        timeout_seconds: float = ATTEMPT_SECONDS,
        is_dry_run: bool = False,
    ) -> Manifest:
        """Create an object and return it. `body` has a name, so repeating a POST that took effect is answered with 409.

        A dry run is answered in the same way and stores nothing.

        Raises:
            ApiError: status 409 when the object exists; see `errors`.
        """
        query = {**self._write_query, "dryRun": "All"} if is_dry_run else self._write_query
        return self._json("POST", path, body, query=query, limits=Limits(attempts, timeout_seconds))

    def put(
        self, path: str, body: Manifest, *, attempts: int = ATTEMPTS, timeout_seconds: float = ATTEMPT_SECONDS
    ) -> Manifest:
        """Replace the object that has the resource version in `body`, and return it.

        Raises:
            ApiError: status 409 when someone wrote in between; see `errors`.
        """
        return self._json(
            "PUT", path, body, query=self._write_query, limits=Limits(attempts, timeout_seconds)
        )

    def apply(self, path: str, body: Manifest) -> Manifest:
        """Apply an object server-side with our field manager, and return it.

        Raises:
            ApiError: see `errors`.
        """
        query = {**self._write_query, "force": "true"}
        return self._json("PATCH", path, body, query=query, content_type="application/apply-patch+yaml")

    def merge(self, path: str, change: Manifest) -> Manifest:
        """Merge a change into an object (RFC 7386: null removes a field), and return the object.

        Raises:
            ApiError: see `errors`.
        """
        content_type = "application/merge-patch+json"
        return self._json("PATCH", path, change, query=self._write_query, content_type=content_type)

    def delete(self, path: str, options: Manifest) -> Manifest | None:
        """Delete an object. No effect if it is absent.

        Returns:
            The object while it is being deleted, or a Status when it is gone at once; None when it is absent (404).

        Raises:
            ApiError: status 409 when, with a uid in `options`, another object has its name; see `errors`.
        """
        try:
            return self._json("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options})
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    # --- one request ---

    def _json(
        self,
        method: str,
        path: str,
        body: Manifest | None = None,
        *,
        query: Query | None = None,
        content_type: str = "application/json",
        limits: Limits = DEFAULT_LIMITS,
    ) -> Manifest:
        content = None if body is None else json.dumps(body, separators=(",", ":"), default=dict).encode()
        return self._send(_Request(method, path, query or {}, content, content_type), limits, decoded_object)

    def _send(self, request: _Request, limits: Limits, decode: Callable[[bytes], Decoded]) -> Decoded:
        """Send a request until it is answered, refused, or the attempts are used up."""
        failure: ApiError
        url = self._connection.server + request.path_and_query
        for attempt in range(1, limits.attempts + 1):
            pause_seconds = min(_LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 3 ** (attempt - 1))
            try:
                headers = self._headers(request)
                # Asked before each attempt, since the Lease may be lost during the pauses, and after the headers, since
                # a token may take its time.
                if request.method in _WRITES and not self._may_write():
                    raise NotLeaderError(f"{request}: the Lease is not held")
                answer = self._attempt(request, url, headers, limits)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = ApiUnavailableError(str(request), 0, type(error).__name__, str(error))
            else:
                if 200 <= answer.status < 300:
                    try:
                        return decode(answer.content)
                    except ValueError as error:
                        failure = ApiUnavailableError(str(request), answer.status, "NotJSON", str(error))
                elif answer.status in _RETRIED:
                    reason, message = reason_and_message(answer.content)
                    failure = ApiUnavailableError(str(request), answer.status, reason, message)
                    pause_seconds = _retry_after(answer, pause_seconds)
                elif answer.status == 401:
                    # A token that expired, or was replaced before its time.
                    self._connection.authorization.renew()
                    failure = _error(request, answer)
                else:
                    # Any other answer would be the same for another attempt.
                    raise _error(request, answer)
            if attempt == limits.attempts:
                break
            _log.debug("%s; attempt %d of %d", failure, attempt, limits.attempts)
            # Random, so that clients that were refused together do not come back together.
            if self._closed.wait(pause_seconds * (0.75 + 0.5 * random.random())):
                break
        raise failure

    def _attempt(self, request: _Request, url: str, headers: Mapping[str, str], limits: Limits) -> _Answer:
        deadline = time.monotonic() + limits.seconds
        # Without the pool's own retries and redirects: `_send` repeats a request, and asks for the Lease before each
        # attempt.
        response = self._pool.urlopen(
            request.method,
            url,
            body=request.body,
            headers=headers,
            timeout=urllib3.Timeout(total=limits.seconds, connect=min(CONNECT_SECONDS, limits.seconds)),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        is_complete = False
        max_bytes = MAX_ANSWER_BYTES if limits.first_bytes is None else limits.first_bytes
        try:
            # Read in pieces, because a socket's timeout applies to each piece and not to the whole answer.
            pieces, size = [], 0
            while piece := response.read1(_CHUNK_BYTES):
                pieces.append(piece)
                size += len(piece)
                if size > max_bytes:
                    if limits.first_bytes is None:
                        raise urllib3.exceptions.HTTPError(f"answer of more than {max_bytes} bytes")
                    break
                if time.monotonic() > deadline:
                    raise urllib3.exceptions.HTTPError(f"answer not complete after {limits.seconds:g} s")
            else:
                is_complete = True
            return _Answer(response.status, response.headers, b"".join(pieces)[:max_bytes])
        finally:
            if is_complete:
                response.release_conn()
            else:
                # The rest of the answer is still on this connection: the next request must not read it.
                with contextlib.suppress(OSError):
                    response.close()

    def _headers(self, request: _Request) -> dict[str, str]:
        headers = {"Accept": request.accept, "User-Agent": f"dapt-operator/{PRODUCT_VERSION}"}
        # Asked for at each request, because tokens expire and are replaced.
        if authorization := self._connection.authorization.header():
            headers["Authorization"] = authorization
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        return headers


def _error(request: _Request, answer: _Answer) -> ApiError:
    error_class = RequestRefusedError if answer.status in _REFUSED else ApiError
    return error_class(str(request), answer.status, *reason_and_message(answer.content))


def _retry_after(answer: _Answer, otherwise_seconds: float) -> float:
    value = str(answer.headers.get("Retry-After") or "")
    # The header may also be a date, which would compare the times of day of two machines. A reconcile waits here, so
    # there is a bound, whatever the server asks for.
    seconds = whole_number(value)
    return otherwise_seconds if seconds is None else min(_LONGEST_PAUSE_SECONDS, float(seconds))
