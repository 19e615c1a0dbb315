"""Serves HTTP to anybody without being held up: few connections at a time, each for a few seconds.

Both servers, a pod's and the operator's, answer whoever reaches their port. A client that sends a byte now and then, or
opens a thousand connections, must cost neither threads nor memory.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final

MAX_CONNECTIONS: Final = 32
"""One more ends the oldest, so that a few clients that hold theirs keep no probe and no scrape out."""
_END_SECONDS: Final = 0.25
"""Longest wait for the thread of a connection that was ended."""
CONNECTION_SECONDS: Final = 10.0
"""Longest time of a connection, however it spends it."""

Request = socket.socket | tuple[bytes, socket.socket]


class BoundedServer(ThreadingHTTPServer):
    """Serves one page or two to few clients at a time."""

    # A client that hangs must not keep the process from ending.
    daemon_threads = True
    # Of a few, which are served in milliseconds, a burst would take all.
    request_queue_size = 4 * MAX_CONNECTIONS

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        *,
        connection_seconds: float = CONNECTION_SECONDS,
    ) -> None:
        """Bind the address.

        Raises:
            OSError: the port is taken, or there is no such address.
        """
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: dict[int, Request] = {}
        """Connections by number, the oldest first; added by the thread that accepts them, removed by their own."""
        self._connection_seconds = connection_seconds
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind the address without the class between, which asks the DNS for this host's name: that may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Request, client_address: object) -> None:
        """Serve a connection from a thread; where too many are open, in the place of the oldest."""
        if not self._slots.acquire(blocking=False):
            for oldest in list(self._open.values())[:1]:
                _shut(oldest)
            if not self._slots.acquire(timeout=_END_SECONDS):
                self.shutdown_request(request)
                return
        self._open[id(request)] = request
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._open.pop(id(request), None)
            self._slots.release()
            raise

    def process_request_thread(self, request: Request, client_address: object) -> None:
        """Serve a connection, and end it when its time is over: a timeout of the socket counts from the last byte."""
        end = threading.Timer(self._connection_seconds, _shut, (request,))
        end.daemon = True
        try:
            end.start()
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._open.pop(id(request), None)
            self._slots.release()

    def handle_error(self, request: Request, client_address: object) -> None:
        """Write nothing: what a client did is no fault of this process, and it may do it without end."""


def _shut(request: Request) -> None:
    if isinstance(request, socket.socket):
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)
