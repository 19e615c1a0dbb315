"""Tests that no client holds up a server: slow ones, many at once, endless requests, and ones that read nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from dapt_contract.untrusted.bounded_server import MAX_CONNECTIONS, BoundedServer

PAGE = b"x" * 50_000_000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = PAGE if self.path == "/large" else b"small"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = BoundedServer(("127.0.0.1", 0), Handler, connection_seconds=0.3)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def ended(connection: socket.socket, content: bytes) -> bool:
    """Send without end, with pauses, until the server has ended the connection."""
    connection.settimeout(5)
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(content)
            threading.Event().wait(0.02)
    return True


@pytest.mark.parametrize(
    "content",
    [
        b"G",
        b"GET / HTTP/1.1\r\nX: y\r\n",
        b"X: y\r\n",
        b"x" * 65536,
        b"GET /" + b"x" * 60_000,
        b"GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
        b"\0\xff" * 1000,
    ],
    ids=["a byte", "headers", "lines", "long line", "long path", "kept alive", "no HTTP"],
)
def test_a_client_that_never_ends_is_ended(
    port: int, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        assert ended(connection, content)
    assert capfd.readouterr().err == "", "a client fills no log"


def test_silent_clients_that_read_nothing_are_ended_and_more_than_a_few_are_closed_at_once(port: int) -> None:
    with contextlib.ExitStack() as stack:
        many = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(4 * MAX_CONNECTIONS)
        ]
        for connection in many[::2]:
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        assert threading.active_count() < 3 * MAX_CONNECTIONS
        for connection in many:
            connection.settimeout(5)
            with contextlib.suppress(ConnectionError):
                while connection.recv(1 << 20):
                    pass
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        assert answer.read() == b"small"


def test_clients_that_hold_all_connections_keep_no_other_out() -> None:
    server = BoundedServer(("127.0.0.1", 0), Handler, connection_seconds=600)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    with contextlib.ExitStack() as stack:
        for _ in range(2 * MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port)))
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=5) as answer:
                assert answer.read() == b"small"
    server.shutdown()
    server.server_close()
    thread.join()
