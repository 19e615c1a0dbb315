"""A proxy in front of the API server that counts, and that does what networks and overloaded servers do.

It shows the API server's certificate, so that a kubeconfig differs by its address alone; who asks is told by the
token in the request (`ControlPlane.kubeconfig_for(..., url=proxy.url)`), for a client certificate ends here.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Literal

import aiohttp
from aiohttp import web
from yarl import URL

from testcluster.calls import Call, parse_call
from testcluster.control_plane import ControlPlane
from testcluster.processes import free_port

HOP_HEADERS = frozenset({"connection", "transfer-encoding", "content-length", "host", "keep-alive", "date"})
MAX_BODY_BYTES = 8 * 1024 * 1024


class Cut(Enum):
    """A connection that ends without an answer."""

    BEFORE = "the API server never hears of the request"
    AFTER = "the request took effect and nobody learns of it"


@dataclass(frozen=True)
class Refusal:
    """An answer that the API server did not give."""

    status: int
    retry_after_seconds: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """A Status as the API server would write it."""
        reason = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
        return {
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "code": self.status,
            "reason": reason.get(self.status, "Unknown"),
            "message": "planted by a test",
        }


class Silence:
    """A request, above all a watch, that is accepted and never answered."""


Effect = Cut | Refusal | Silence


@dataclass
class Fault:
    """What happens to which requests."""

    effect: Effect
    where: Callable[[Call], bool] = lambda _: True
    times: int | None = None
    """How often; without end for None."""
    hits: int = 0
    """How often it happened."""

    def takes(self, call: Call) -> bool:
        """Whether it happens to this call; counts if so."""
        if (self.times is not None and self.hits >= self.times) or not self.where(call):
            return False
        self.hits += 1
        return True


@dataclass
class _Hook:
    number: int
    when: Literal["before", "after"]
    act: Callable[[Call], None]
    where: Callable[[Call], bool]


@dataclass(eq=False)
class _Watch:
    call: Call
    transport: asyncio.BaseTransport | None
    is_silent: bool = False


class ApiProxy:
    """Forwards to a control plane; a context manager with a thread of its own."""

    def __init__(self, plane: ControlPlane) -> None:
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.calls: list[Call] = []
        """Everything that was asked, in order, whatever became of it."""
        self.faults: list[Fault] = []
        self._plane = plane
        self._hooks: list[_Hook] = []
        self._writes = 0
        self._watches: set[_Watch] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-proxy", daemon=True)

    def __enter__(self) -> ApiProxy:
        self._thread.start()
        self._wait(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- what a test says ---

    @property
    def writes(self) -> int:
        """How many writes came so far; leases do not count, for they come by the clock."""
        return self._writes

    def count(self, where: Callable[[Call], bool] = lambda _: True) -> Counter[tuple[str, str]]:
        """How many requests by verb and resource, without leases."""
        return Counter(
            (call.verb, call.resource) for call in list(self.calls) if not call.is_lease and where(call)
        )

    def plant(
        self, effect: Effect, where: Callable[[Call], bool] = lambda _: True, *, times: int | None = 1
    ) -> Fault:
        """Let something happen to requests from now on; the newest fault that fits wins."""
        fault = Fault(effect, where, times)
        self.faults.insert(0, fault)
        return fault

    def heal(self) -> None:
        """Forget all faults and hooks; silent watches stay silent, as in life."""
        self.faults.clear()
        self._hooks.clear()

    def at_write(
        self,
        number: int,
        act: Callable[[Call], None],
        *,
        when: Literal["before", "after"],
        where: Callable[[Call], bool] = lambda _: True,
    ) -> None:
        """Call `act` at the n-th fitting write from now on, counted from 1, and then drop its connection.

        With `before` the API server never hears of that write; with `after` it took effect and was not answered.
        """
        self._hooks.append(_Hook(number, when, act, where))

    def silence_watches(self, where: Callable[[Call], bool] = lambda _: True) -> int:
        """Watches that are open now say nothing more and stay open; returns how many."""

        async def work() -> int:
            chosen = [watch for watch in self._watches if where(watch.call)]
            for watch in chosen:
                watch.is_silent = True
            return len(chosen)

        return self._wait(work())

    def cut_watches(self, where: Callable[[Call], bool] = lambda _: True) -> int:
        """Watches that are open now lose their connection; returns how many."""

        async def work() -> int:
            chosen = [watch for watch in self._watches if where(watch.call)]
            for watch in chosen:
                _abort(watch.transport)
            return len(chosen)

        return self._wait(work())

    # --- inside ---

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        upstream = ssl.create_default_context(cafile=str(self._plane.authority_file))
        self._session = aiohttp.ClientSession(
            self._plane.url,
            connector=aiohttp.TCPConnector(limit=0, ssl=upstream),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
        )
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._plane.serving.certificate, self._plane.serving.key)
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context).start()

    async def _close(self) -> None:
        for connection in self._runner.server.connections if self._runner.server else ():
            _abort(connection.transport)  # a polite end would wait for clients that are gone
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(0.1)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = parse_call(
            request.method, request.raw_path, request.headers.get("User-Agent", ""), _parsed(body)
        )
        self.calls.append(call)
        hook = self._hook_for(call)
        if hook is not None and hook.when == "before":
            return await self._act(hook, call, request)
        effect = next((fault.effect for fault in list(self.faults) if fault.takes(call)), None)
        if isinstance(effect, Refusal):
            return _refuse(effect)
        if effect is Cut.BEFORE:
            return _drop(request)
        if call.verb == "watch":
            return await self._stream(request, call, is_silent=isinstance(effect, Silence))
        if isinstance(effect, Silence):
            await asyncio.Event().wait()
        answer = await self._forward(request, body)
        if effect is Cut.AFTER:
            return _drop(request)
        if hook is not None:
            return await self._act(hook, call, request)
        return answer

    def _hook_for(self, call: Call) -> _Hook | None:
        if not call.is_write or call.is_lease:
            return None
        self._writes += 1
        due = None
        for hook in [item for item in self._hooks if item.where(call)]:
            hook.number -= 1
            if hook.number == 0:
                due = hook
        return due

    async def _act(self, hook: _Hook, call: Call, request: web.Request) -> web.StreamResponse:
        await self._loop.run_in_executor(None, hook.act, call)
        return _drop(request)

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        async with self._session.request(
            request.method, _url(request), data=body or None, headers=_headers(request.headers)
        ) as answer:
            content = await answer.read()
            return web.Response(status=answer.status, body=content, headers=_headers(answer.headers))

    async def _stream(self, request: web.Request, call: Call, *, is_silent: bool) -> web.StreamResponse:
        watch = _Watch(call, request.transport, is_silent)
        self._watches.add(watch)
        try:
            async with self._session.get(_url(request), headers=_headers(request.headers)) as answer:
                response = web.StreamResponse(status=answer.status, headers=_headers(answer.headers))
                response.enable_chunked_encoding()
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    if not watch.is_silent:
                        await response.write(chunk)
            if watch.is_silent:
                await asyncio.Event().wait()  # not even its end is told
            await response.write_eof()
            return response
        finally:
            self._watches.discard(watch)


def _url(request: web.Request) -> URL:
    return URL(request.raw_path, encoded=True)


def _headers(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in HOP_HEADERS}


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _refuse(refusal: Refusal) -> web.Response:
    headers = {}
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    return web.json_response(refusal.body, status=refusal.status, headers=headers)


def _drop(request: web.Request) -> web.StreamResponse:
    _abort(request.transport)
    return web.Response(status=500)


def _abort(transport: asyncio.BaseTransport | None) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
