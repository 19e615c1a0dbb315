"""Addresses of scripted pods, and what answers at them: /progress of a pod, the log of a container.

Pods get addresses of the range that is set apart for testing network gear (198.18.0.0/15), of which the kernel is
told that a part is this host's own; that needs root and `ip`. Elsewhere they get loopback addresses, of which the
endpoint controllers complain.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

from testcluster import leftovers
from testcluster.pod_life import Answer, Reading, answer_of
from testcluster.processes import free_port

FOR_TESTS = IPv4Network("198.18.0.0/15")
LOOPBACK = IPv4Network("127.64.0.0/10")
PREFIX = 20
MAX_HEAD_BYTES = 16 * 1024


class PodNetwork:
    """A network of this kubelet alone; `close` takes it away again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._routed: IPv4Network | None = None
        self.network = self._choose()
        self._free = itertools.cycle([str(address) for address in self.network.hosts()])
        self._servers: dict[str, asyncio.Server] = {}

    def take(self) -> str:
        """The next address; they come round again after 4,094."""
        return next(self._free)

    async def serve(self, address: str, port: int, reading: Callable[[], Reading]) -> None:
        """Answer GET /progress at a pod's address until `end`."""
        if address not in self._servers:
            self._servers[address] = await asyncio.start_server(
                lambda reader, writer: _answer_progress(reader, writer, reading), address, port
            )

    def end(self, address: str) -> None:
        """The pod ended: connections are refused from now on."""
        server = self._servers.pop(address, None)
        if server is not None:
            server.close()

    def close(self) -> None:
        """Stop answering and give the network back."""
        for address in list(self._servers):
            self.end(address)
        if self._routed is not None:
            leftovers.remove_route(self._routed, self._folder)

    def _choose(self) -> IPv4Network:
        for network in random.Random().sample(list(FOR_TESTS.subnets(new_prefix=PREFIX)), 8):
            if leftovers.add_route(network, self._folder):
                self._routed = network
                return network
        return random.Random().choice(list(LOOPBACK.subnets(new_prefix=PREFIX)))


class LogServer:
    """The part of a kubelet's own API that `kubectl logs` reaches."""

    def __init__(self, logs: Mapping[tuple[str, str], str], certificate: Path, key: Path) -> None:
        self.port = free_port()
        self._logs = logs
        self._context = SSLContext(PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with _closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            place, _, query = head.split(b" ")[1].decode().partition("?")
            parts = place.strip("/").split("/")
            log = self._logs.get((parts[1], parts[2])) if parts[0] == "containerLogs" else None
            if log is None:
                writer.write(_response(Answer(b"no such container", status=404)))
                return
            options = dict(item.split("=", 1) for item in query.split("&") if "=" in item)
            lines = log.splitlines(keepends=True)[-int(options.get("tailLines", 1_000_000)) :]
            text = "".join(lines).encode()[: int(options.get("limitBytes", 1_000_000))]
            writer.write(_response(Answer(text, content_type="text/plain")))
            await writer.drain()


async def _answer_progress(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reading: Callable[[], Reading]
) -> None:
    async with _closing(writer):
        await reader.readuntil(b"\r\n\r\n")
        answer = answer_of(reading())
        await asyncio.sleep(answer.delay_seconds)
        writer.write(_response(answer))
        while answer.is_endless:
            writer.write(b" " * 65536)
            await writer.drain()
        await writer.drain()


def _response(answer: Answer) -> bytes:
    length = "" if answer.is_endless else f"Content-Length: {len(answer.body)}\r\n"
    head = f"HTTP/1.1 {answer.status} Scripted\r\nContent-Type: {answer.content_type}\r\n{length}"
    return f"{head}Connection: close\r\n\r\n".encode() + answer.body


class _closing(contextlib.AbstractAsyncContextManager[None]):  # noqa: N801
    """Closes a connection; whoever went away first is no matter."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._writer.wait_closed()
        return isinstance(error, OSError | asyncio.IncompleteReadError)
