"""Plain JSON over one connection pool: no model classes, a limit on every wait, retries where they are safe.

Every write of ours may be sent twice: names are functions of the run key (a second POST answers 409), a status goes
with its resource version, a deletion with the object's uid. So every request is tried again after 429, 5xx and a cut
connection, a few times and within seconds; afterwards the work queue's rest takes over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import kubernetes.client
import urllib3
from kubernetes.client.rest import RESTClientObject

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cluster.kubernetes.errors import (
    ApiError,
    ApiUnavailableError,
    NotLeaderError,
    RequestRefusedError,
)

CONNECT_SECONDS = 3.0
ATTEMPT_SECONDS = 10.0
"""Limit of one attempt. `lease.py` counts on it: no write arrives later than this after its check."""
ATTEMPTS = 4
MAX_CONNECTIONS = 32
PAGE = 250
_FIRST_REST_SECONDS = 0.2
_LONGEST_REST_SECONDS = 5.0
_MAX_ANSWER_BYTES = 256 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_RETRIED = frozenset({429, 500, 502, 503, 504})
_REFUSED = frozenset({400, 403, 405, 413, 422})
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes


class Api:
    """The API server, for any number of threads."""

    def __init__(
        self, client: kubernetes.client.ApiClient, may_write: Callable[[], bool] = lambda: True
    ) -> None:
        """
        Args:
            client: its configuration (host, certificates, token) is used, not its methods.
            may_write: asked before each attempt of a write.
        """
        self._configuration = client.configuration
        self._pool = RESTClientObject(client.configuration, maxsize=MAX_CONNECTIONS).pool_manager
        self._may_write = may_write
        self._closed = threading.Event()

    def close(self) -> None:
        """End all rests between retries: what fails now is not tried again."""
        self._closed.set()
        self._pool.clear()

    # --- verbs ---

    def get(
        self,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        attempts: int = ATTEMPTS,
        timeout_seconds: float = ATTEMPT_SECONDS,
    ) -> Any:
        """An object or list; None when it is not there (404).

        Raises:
            ApiError: see `errors`.
        """
        try:
            return self._json("GET", path, query, attempts=attempts, timeout_seconds=timeout_seconds)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def text(self, path: str, query: Mapping[str, Any], *, max_bytes: int, timeout_seconds: float) -> bytes:
        """The first bytes of an answer that is no JSON; one attempt.

        Raises:
            ApiError: see `errors`.
        """
        return bytes(
            self._send("GET", path, query, None, attempts=1, seconds=timeout_seconds, most=max_bytes)
        )

    def pages(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[Mapping[str, Any]]:
        """A list, page by page; all pages are of one moment.

        Raises:
            ApiError: see `errors`; 410 when the list took so long that its moment is forgotten.
        """
        wanted = {"limit": PAGE, **(query or {})}
        while True:
            page = self._json("GET", path, wanted, attempts=ATTEMPTS, timeout_seconds=3 * ATTEMPT_SECONDS)
            yield page
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            wanted = wanted | {"continue": token}

    def post(self, path: str, body: Any, *, attempts: int = ATTEMPTS) -> Any:
        """Create; the answer. `body` has its name, so a second attempt of a POST that took effect answers 409.

        Raises:
            ApiError: status 409 when it exists; see `errors`.
        """
        return self._json("POST", path, {"fieldManager": "dapt"}, body, attempts=attempts)

    def put(self, path: str, body: Any, *, attempts: int = ATTEMPTS) -> Any:
        """Replace what has the resource version that `body` names; the answer.

        Raises:
            ApiError: status 409 when somebody wrote in between; see `errors`.
        """
        return self._json("PUT", path, {"fieldManager": "dapt"}, body, attempts=attempts)

    def apply(self, path: str, body: Any) -> Any:
        """Server-side apply with our field manager; the answer.

        Raises:
            ApiError: see `errors`.
        """
        query = {"fieldManager": "dapt", "force": "true"}
        return self._json("PATCH", path, query, body, content_type="application/apply-patch+yaml")

    def delete(self, path: str, options: Mapping[str, Any]) -> None:
        """Delete; absent (404) or replaced by another object (409, with a uid in `options`): no effect.

        Raises:
            ApiError: see `errors`.
        """
        try:
            self._json("DELETE", path, None, {"apiVersion": "v1", "kind": "DeleteOptions", **options})
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    # --- one request ---

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        *,
        content_type: str = "application/json",
        attempts: int = ATTEMPTS,
        timeout_seconds: float = ATTEMPT_SECONDS,
    ) -> Any:
        content = None if body is None else json.dumps(body, separators=(",", ":"), default=dict).encode()
        return self._send(
            method, path, query, content,
            attempts=attempts, seconds=timeout_seconds, content_type=content_type, decode=json.loads,
        )  # fmt: skip

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: bytes | None,
        *,
        attempts: int,
        seconds: float,
        content_type: str = "application/json",
        most: int | None = None,
        decode: Callable[[bytes], Any] = bytes,
    ) -> Any:
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        request = f"{method} {path}"
        for attempt in range(1, attempts + 1):
            if method in _WRITES and not self._may_write():
                raise NotLeaderError(f"{request}: the Lease is not held")
            rest = min(_LONGEST_REST_SECONDS, _FIRST_REST_SECONDS * 3 ** (attempt - 1))
            try:
                answer = self._attempt(method, url, body, content_type, seconds, most)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = ApiUnavailableError(request, 0, type(error).__name__, str(error))
            else:
                if 200 <= answer.status < 300:
                    try:
                        return decode(answer.content)
                    except ValueError as error:
                        failure = ApiUnavailableError(request, answer.status, "NotJSON", str(error))
                elif answer.status in _RETRIED:
                    failure = ApiUnavailableError(request, answer.status, *_said(answer.content))
                    rest = _retry_after(answer, rest)
                else:
                    raise _error(request, answer)
            if attempt == attempts:
                break
            _log.debug("%s; attempt %d of %d", failure, attempt, attempts)
            # Spread, so that those refused together do not come back together.
            if self._closed.wait(rest * (0.75 + 0.5 * random.random())):
                break
        raise failure

    def _attempt(
        self,
        method: str,
        url: str,
        body: bytes | None,
        content_type: str,
        seconds: float,
        most: int | None,
    ) -> _Answer:
        deadline = time.monotonic() + seconds
        response = self._pool.urlopen(
            method,
            url,
            body=body,
            headers=self._headers(content_type if body is not None else None),
            timeout=urllib3.Timeout(total=seconds, connect=min(CONNECT_SECONDS, seconds)),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        complete = False
        try:
            # In pieces, because a timeout of a socket is one of each piece and not of the whole.
            pieces, size, limit = [], 0, most if most is not None else _MAX_ANSWER_BYTES
            while piece := response.read1(_CHUNK_BYTES):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    if most is None:
                        raise urllib3.exceptions.HTTPError(f"answer of more than {limit} bytes")
                    break
                if time.monotonic() > deadline:
                    raise urllib3.exceptions.HTTPError(f"answer not complete after {seconds:g} s")
            else:
                complete = True
            return _Answer(response.status, response.headers, b"".join(pieces)[:limit])
        finally:
            if complete:
                response.release_conn()
            else:
                with contextlib.suppress(OSError):
                    response.close()

    def _headers(self, content_type: str | None) -> dict[str, str]:
        headers = {"Accept": "application/json, */*", "User-Agent": f"dapt-operator/{PRODUCT_VERSION}"}
        token = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["Authorization"] = token
        if content_type:
            headers["Content-Type"] = content_type
        return headers


def _error(request: str, answer: _Answer) -> ApiError:
    kind = RequestRefusedError if answer.status in _REFUSED else ApiError
    return kind(request, answer.status, *_said(answer.content))


def _said(content: bytes) -> tuple[str, str]:
    """Reason and sentence of a Status, or the beginning of what came instead."""
    try:
        status = json.loads(content)
        return str(status.get("reason") or ""), str(status.get("message") or "")[:2000]
    except (ValueError, AttributeError):
        return "", content[:200].decode(errors="replace")


def _retry_after(answer: _Answer, otherwise: float) -> float:
    value = str(answer.headers.get("Retry-After") or "")
    return min(_LONGEST_REST_SECONDS, float(value)) if value.isdigit() else otherwise
