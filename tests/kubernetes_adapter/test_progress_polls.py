"""Tests progress polls: whatever a pod answers, only a reading of its own run counts, and no caller waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import pytest

from dapt_contract.pod.progress import Progress
from dapt_operator.cluster.kubernetes.cache.entry import Target
from dapt_operator.cluster.kubernetes.polls import progress
from dapt_operator.cluster.kubernetes.polls.progress import ProgressPolls
from dapt_operator.cluster.port import Key
from support.pod_objects import wait_until
from support.ports import free_port

KEY = Key("health", "clinical-llama")
RUN = "0123456789abcdef"
GOOD = Progress(run_key=RUN + 48 * "0", stage="pretrain", fraction=0.25).model_dump_json().encode()

Answer = Callable[[BaseHTTPRequestHandler], None]


def says(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drips(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        threading.Event().wait(0.01)


class PodServer:
    """What a pod answers at /progress."""

    def __init__(self) -> None:
        self.answer: Answer = says(GOOD)
        self.asked = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                assert self.path == "/progress"
                server.asked += 1
                server.answer(self)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.target = Target(
            KEY, "clinical-llama-pretrain-01234567", RUN, "127.0.0.1", self._server.server_address[1], "job-1"
        )
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch) -> Iterator[PodServer]:
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(progress, "WAKE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(progress, "TIMEOUT_SECONDS", 0.5)
    server = PodServer()
    yield server
    server.close()


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[ProgressPolls, list[Key]]]]:
    made: list[ProgressPolls] = []

    def begin(*targets: Target) -> tuple[ProgressPolls, list[Key]]:
        woken: list[Key] = []
        made.append(ProgressPolls(lambda: targets, woken.append))
        return made[-1], woken

    yield begin
    for readings in made:
        readings.close()


def test_a_reading_wakes_its_adaptation_once(pod: PodServer, start: Any) -> None:
    readings, woken = start(pod.target)
    wait_until(lambda: pod.asked > 3, "four questions")
    assert readings.readings(KEY)["clinical-llama-pretrain-01234567"].fraction == 0.25
    assert readings.readings(Key("health", "another")) == {}
    assert woken == [KEY], "an unchanged reading wakes nobody"
    pod.answer = says(GOOD.replace(b"0.25", b"0.5"))
    wait_until(lambda: len(woken) == 2, "the changed reading")
    assert readings.readings(KEY)["clinical-llama-pretrain-01234567"].fraction == 0.5


@pytest.mark.parametrize(
    "answer",
    [
        says(b"not JSON"),
        says(b"[]"),
        says(b'{"run_key": 7}'),
        says(b"[" * 60_000),
        says(GOOD.replace(b"0.25", b"1e999")),
        says(GOOD + 70_000 * b" "),
        says(GOOD.replace(RUN.encode(), b"f" * 16)),
        says(GOOD, 500),
        says(GOOD, 302, Location="http://127.0.0.1:9/"),
        says(GOOD, 200, **{"Content-Encoding": "gzip"}),
        says(GOOD, 200, X=20_000 * "x"),
        says(b""),
        drips,
        lambda handler: handler.connection.close(),
        lambda handler: handler.wfile.write(b"\0\r\n\r\n"),
    ],
    ids=[
        "no JSON", "a list", "wrong type", "deep", "infinite", "too long", "another run", "500", "redirect",
        "wrong encoding", "long header", "empty", "drip", "closed", "no HTTP",
    ],
)  # fmt: skip
def test_an_odd_answer_is_no_reading_and_harms_no_other(pod: PodServer, start: Any, answer: Answer) -> None:
    other = PodServer()
    good = Target(
        Key("health", "other"), "other-pretrain-89abcdef", RUN, "127.0.0.1", other.target.port, "job-1"
    )
    pod.answer = answer
    readings, woken = start(pod.target, good)
    wait_until(lambda: pod.asked > 1 and other.asked > 1, "two rounds")
    assert readings.readings(KEY) == {}
    assert readings.readings(good.key)["other-pretrain-89abcdef"].fraction == 0.25
    assert woken == [good.key]
    other.close()


def test_closed_port_gives_no_reading_and_a_failed_poll_keeps_the_last_one(
    pod: PodServer, start: Any
) -> None:
    nobody = Target(Key("health", "nobody"), "x", RUN, "127.0.0.1", free_port(), "job-1")
    readings, _ = start(pod.target, nobody)
    wait_until(lambda: bool(readings.readings(KEY)), "a reading")
    pod.answer = says(b"?")
    asked = pod.asked
    wait_until(lambda: pod.asked > asked + 1, "two more questions")
    assert readings.readings(KEY)["clinical-llama-pretrain-01234567"].fraction == 0.25
    assert readings.readings(nobody.key) == {}


def test_a_run_that_is_over_has_no_reading(pod: PodServer) -> None:
    targets = [pod.target]
    readings = ProgressPolls(lambda: tuple(targets), lambda key: None)
    wait_until(lambda: bool(readings.readings(KEY)), "a reading")
    targets.clear()
    wait_until(lambda: not readings.readings(KEY), "its end")
    readings.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fd00:10:244::7"])
def test_a_pod_is_asked_at_its_address_of_either_family(host: str) -> None:
    urls: list[str] = []

    class Session:
        def get(self, url: str, **_: object) -> Any:
            urls.append(str(aiohttp.client.URL(url)))
            raise aiohttp.ClientConnectionError("no such pod")

    target = Target(KEY, "clinical-llama-pretrain-01234567", RUN, host, 9464, "job-1")
    assert asyncio.run(progress.fetch(Session(), target)) is None  # type: ignore[arg-type]
    bracketed = f"[{host}]" if ":" in host else host
    assert urls == [f"http://{bracketed}:9464/progress"]


@pytest.mark.parametrize(("runs", "seconds"), [(0, 3.0), (60, 3.0), (200, 10.0)])
def test_many_runs_are_asked_less_often(runs: int, seconds: float) -> None:
    assert progress.pause_seconds(runs) == seconds
