"""Tests progress readings of local processes, whose answers are not trusted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dapt_contract.pod.progress import Progress
from dapt_operator.cluster.local.progress import LocalProgress, ProgressTarget, fetch
from support.pod_objects import wait_until
from support.ports import free_port


@contextmanager
def serving(content: bytes, status: int = 200) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            try:
                self.wfile.write(content)
            except OSError:
                return  # the reader had enough

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


GOOD = b'{"run_key": "abc123", "stage": "pretrain", "step": 4, "from_the_future": true}'


def test_a_reading_is_parsed_and_what_is_not_known_is_dropped() -> None:
    with serving(GOOD) as port:
        assert fetch(ProgressTarget(port, "abc")) == Progress(run_key="abc123", stage="pretrain", step=4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b'{"run_key": "x"}',
        b'{"run_key": "x", "stage": "s", "fraction": 7}',
        b"x" * 100_000,
    ],
)
def test_what_is_no_reading_is_dropped(content: bytes) -> None:
    with serving(content) as port:
        assert fetch(ProgressTarget(port, "")) is None


def test_an_error_is_no_reading() -> None:
    with serving(GOOD, status=500) as port:
        assert fetch(ProgressTarget(port, "")) is None


def test_closed_port_gives_no_progress_reading() -> None:
    assert fetch(ProgressTarget(free_port(), "")) is None


def test_only_readings_of_the_run_itself_are_kept_and_only_while_it_runs() -> None:
    with serving(GOOD) as port:
        targets = {"mine": ProgressTarget(port, "abc"), "forged": ProgressTarget(port, "xyz")}
        readings = LocalProgress(lambda: targets)
        wait_until(lambda: "mine" in readings.latest(), "a reading")
        assert set(readings.latest()) == {"mine"}
        targets = {}
        assert readings.latest() == {}
        readings.close()
