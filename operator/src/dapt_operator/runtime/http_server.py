"""Serves `/healthz`, `/readyz` and `/metrics` on one port, from a thread."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Self

from prometheus_client import CONTENT_TYPE_LATEST

from dapt_contract.untrusted.bounded_server import BoundedServer
from dapt_operator.runtime.errors import PortTakenError

_log = logging.getLogger(__name__)
Check = Callable[[], str]
"""Returns what is wrong, in a few words; empty when nothing is."""


class _DualStackServer(BoundedServer):
    """Serves IPv4 and IPv6: a pod of an IPv6 cluster has no IPv4 address."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class MonitoringServer:
    """Serves health and metrics while its context is entered."""

    def __init__(self, port: int, *, alive: Check, ready: Check, metrics: Callable[[], bytes]) -> None:
        """Bind the port.

        Args:
            port: 0 for any free one.
            alive: called at each request of /healthz.
            ready: called at each request of /readyz.
            metrics: called at each request of /metrics; returns them in Prometheus' text format.

        Raises:
            PortTakenError: another process has the port.
        """
        pages: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/healthz": lambda: _answer(alive()),
            "/readyz": lambda: _answer(ready()),
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, metrics()),
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                if page is None:
                    self.send_error(404, "there are /healthz, /readyz and /metrics")
                    return
                # Before the status line: a page that fails ends its connection instead of sending half an answer with
                # 200.
                try:
                    code, content_type, content = page()
                except Exception:
                    _log.exception("%s cannot be served", self.path[:100])
                    raise
                with contextlib.suppress(ConnectionError):  # the client has closed the connection
                    self.send_response(code)
                    self.send_header("Content-Type", content_type)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Log nothing: probes and scrapes come every few seconds."""

        self._server = _bind(port, Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that is served."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _bind(port: int, handler: type[BaseHTTPRequestHandler]) -> BoundedServer:
    try:
        if socket.has_dualstack_ipv6():
            # A kernel may support IPv6 while no interface has an IPv6 address: then binding it fails.
            with contextlib.suppress(OSError):
                return _DualStackServer(("::", port), handler)
        return BoundedServer(("", port), handler)
    except OSError as error:
        raise PortTakenError(
            f"port {port} cannot be served: {error.strerror}; give another --port"
        ) from error


def _answer(problem: str) -> tuple[int, str, bytes]:
    return (503 if problem else 200, "text/plain; charset=utf-8", f"{problem or 'ok'}\n".encode())
