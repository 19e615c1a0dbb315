"""Tests every answer and message that a compromised pod may send: each is refused, or bounded and cleaned."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import resource
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dapt_contract.envelope import ContractError
from dapt_contract.pod.message import decode_message
from dapt_contract.pod.progress import Progress
from dapt_operator.api.v1alpha1.status import DomainAdaptationStatus, StageStatus
from dapt_operator.cli.display.live_view import render
from dapt_operator.cli.display.screen import PlainScreen, make_console
from dapt_operator.cli.display.stage_rows import Snapshot
from dapt_operator.cluster.kubernetes.cache.entry import Target
from dapt_operator.cluster.kubernetes.polls import progress
from dapt_operator.cluster.local import progress as local_progress
from dapt_operator.cluster.port import Key
from support.hostile_texts import HOSTILE_TEXTS, assert_inert

RUN = "0123456789abcdef"
NOW = "2026-01-31T12:00:00Z"
MAX_GROWTH_KIB = 64 * 1024
"""Of the memory of this process, which has the pod too: far less than an answer without end or a bomb."""
Send = Callable[[bytes], None]


def body(**fields: object) -> bytes:
    """A reading of the run with these fields; texts as JSON escapes them."""
    return json.dumps({"run_key": RUN, "stage": "pretrain", "fraction": 0.5} | fields).encode()


def raw(**fields: bytes) -> bytes:
    """A reading of the run with fields that no JSON library writes."""
    more = b"".join(b', "%s": %s' % (name.encode(), value) for name, value in fields.items())
    return b'{"run_key": "%s", "stage": "pretrain"%s}' % (RUN.encode(), more)


def answer(content: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


def endless(beginning: bytes, part: bytes) -> Callable[[Send], None]:
    def send(to: Send) -> None:
        to(beginning)
        while True:
            to(part)

    return send


def slow(beginning: bytes, part: bytes) -> Callable[[Send], None]:
    def send(to: Send) -> None:
        to(beginning)
        while True:
            to(part)
            threading.Event().wait(0.02)

    return send


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = zlib.compress(b" " * 50_000_000, 9)
REFUSED: dict[str, bytes | Callable[[Send], None]] = {
    "huge": answer(body() + b" " * 1_000_000),
    "endless body": endless(HEAD, b" " * 65536),
    "endless text": endless(HEAD, body()),
    "endless header": endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000),
    "endless status": endless(b"HTTP/1.1 200 ", b"O" * 65536),
    "endless continues": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "endless chunks": endless(CHUNKED, b"1\r\n \r\n" * 1000),
    "endless chunk size": endless(CHUNKED, b"0" * 65536),
    "endless trailers": endless(CHUNKED + b"0\r\n", b"X: y\r\n" * 1000),
    "slow body": slow(HEAD, b" "),
    "slow headers": slow(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "slow status": slow(b"", b"H"),
    "slow chunks": slow(CHUNKED, b"1\r\n \r\n"),
    "huge chunk": CHUNKED + b"ffffffffffffffff\r\n" + body(),
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{",
    "long length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + b"{",
    "no HTTP": b"\0\xff\x16\x03\x01" * 100,
    "no answer": b"",
    "another version": b"HTTP/9.9 200 OK\r\n\r\n",
    "redirect": answer(body(), "302 Found", Location="http://169.254.169.254/latest"),
    "redirect to a file": answer(body(), "301 Moved", Location="file:///etc/passwd"),
    "unauthorized": answer(body(), "401 Unauthorized", WWW_Authenticate="Basic realm=x"),
    "error": answer(body(), "500 Oh"),
    "gzip bomb": answer(gzip.compress(b" " * 50_000_000), Content_Encoding="gzip"),
    "deflate bomb": answer(BOMB, Content_Encoding="deflate"),
    "gzip reading": answer(gzip.compress(body()), Content_Encoding="gzip"),
    "unknown encoding": answer(body(), Content_Encoding="br, gzip"),
    "no JSON": answer(b"<html>"),
    "deep lists": answer(b"[" * 60_000),
    "deep objects": answer(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "deep field": answer(raw(activity=b"[" * 5000 + b"]" * 5000)),
    "a list": answer(b"[]"),
    "a number": answer(b"7"),
    "null": answer(b"null"),
    "no UTF-8": answer(raw(activity=b'"\xff\xfe"')),
    "half a pair": answer(raw(activity=b'"\\ud800"')),
    "UTF-16": answer(body().decode().encode("utf-16")),
    "trailing text": answer(body() + body()),
    "wrong types": answer(body(step="many", tokens=[])),
    "truth as key": answer(body(run_key=True)),
    "another run": answer(body(run_key="f" * 16)),
    "negative step": answer(body(step=-1)),
    "negative tokens": answer(body(tokens=-(10**18))),
    "huge count": answer(raw(tokens=b"1" + b"0" * 400)),
    "count of many digits": answer(raw(step=b"9" * 50_000)),
    "count with a fraction": answer(raw(step=b"0.5")),
    "infinite count": answer(raw(step=b"1e400")),
    "no number as count": answer(raw(total_steps=b"NaN")),
    "more than all": answer(body(fraction=1.5)),
    "infinite fraction": answer(raw(fraction=b"Infinity")),
    "long activity": answer(body(activity="x" * 201)),
    "many checkpoints": answer(body(checkpoints=[[1, 2, 3, 4, 5, "a", 1]] * 5000)),
    "odd checkpoints": answer(body(checkpoints=[{"step": "x"}])),
}  # fmt: skip
ACCEPTED: dict[str, bytes] = {
    "wrong content type": answer(body(), Content_Type="text/html"),
    "cookies": answer(body(), Set_Cookie="a=b; Domain=example.org"),
    "no number as loss": answer(raw(loss_nats=b"NaN", gradient_norm=b"-Infinity")),
    "infinite time left": answer(raw(eta_seconds=b"1e400", tokens_per_second=b"Infinity")),
    "huge time left": answer(raw(eta_seconds=b"1e308", loss_nats=b"-1e308", domain_perplexity=b"1e308")),
    "negative time left": answer(raw(eta_seconds=b"-5", tokens_per_second=b"-1e300")),
    "no number of seconds": answer(raw(eta_seconds=b"NaN", general_perplexity=b"NaN")),
    "a field twice": answer(raw(step=b'1, "step": 2', total_steps=b"0")),
    "fields of the future": answer(body(finished_at="9999-12-31T23:59:59Z", __proto__={"a": 1})),
    **{
        f"activity {text!r}": answer(body(activity=text))
        for text in HOSTILE_TEXTS
        if "\ud800" not in text and len(text) <= 200
    },
}


class Pod:
    """Answers every connection with these bytes, or by a function that sends until the other side has enough."""

    def __init__(self, content: bytes | Callable[[Send], None]) -> None:
        self._content = content
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for _ in range(2):
            connection, _ = self._server.accept()
            # The client is gone, and whatever it did not read is dropped.
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)  # one that neither reads nor closes its end is left
                connection.recv(65536)
                if isinstance(self._content, bytes):
                    connection.sendall(self._content)
                else:
                    self._content(connection.sendall)

    def close(self) -> None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "somebody still reads"
        self._server.close()


def readings(content: bytes | Callable[[Send], None]) -> Iterator[Progress | None]:
    """What the operator and a local run make of an answer."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pod = Pod(content)
    target = Target(Key("health", "clinical"), "clinical-pretrain", RUN, "127.0.0.1", pod.port, "job-1")

    async def fetch() -> Progress | None:
        async with progress.make_session() as session:
            return await progress.fetch(session, target)

    yield asyncio.run(fetch())
    yield local_progress.fetch(local_progress.ProgressTarget(pod.port, RUN))
    pod.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(local_progress, "ANSWER_SECONDS", 0.3)


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_answer_is_no_reading(name: str) -> None:
    assert list(readings(REFUSED[name])) == [None, None]


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_odd_reading_is_shown_bounded_and_cleaned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for reading in readings(ACCEPTED[name]):
        assert reading is not None
        stage = StageStatus(name="pretrain", kind="pretrain", state="Running", run_key=RUN, start_time=NOW)
        shown = Snapshot("clinical", DomainAdaptationStatus(stages=(stage,)), progress={RUN: reading})
        make_console().print(render(shown))
        PlainScreen().show(shown)
        written = capsys.readouterr().out
        assert_inert(written)
        assert max(map(len, written.splitlines())) < 400


def message(**fields: Any) -> str:
    return json.dumps({"key": RUN, "kind": "prepare"} | fields)


REFUSED_MESSAGES = {
    "empty": "",
    "no JSON": "Killed",
    "long": message(message="x" * 5000),
    "deep": "[" * 4000,
    "deep facts": '{"key": "a", "kind": "prepare", "facts": {"a": ' + "[" * 1500 + "]" * 1500 + "}}",
    "a list": "[]",
    "null": "null",
    "wrong types": message(exit_code="zero", effect=[]),
    "huge exit code": message(exit_code=10**400),
    "negative exit code": message(exit_code=-(2**31)),
    "an unknown cause": message(cause="Sabotage"),
    "half a pair": '{"key": "a", "kind": "prepare", "message": "\\ud800"}',
    "half a pair unescaped": '{"key": "a", "kind": "prepare", "message": "\ud800"}',
    "trailing text": message() + message(),
    "a long key": message(key="x" * 129),
    "a long kind": message(kind="x" * 254),
    "infinite exit code": '{"key": "a", "kind": "prepare", "exit_code": 1e400}',
    "facts are a list": message(facts=[1]),
}
REFUSED_FACTS: dict[str, dict[str, Any]] = {
    "unknown kind": {"kind": "mine", "facts": {}},
    "negative": {"kind": "publish", "facts": {"destination": "d", "digest": "x", "files": -1, "size_bytes": 1}},
    "huge": {"kind": "publish", "facts": {"destination": "d", "digest": "x", "files": 10**400, "size_bytes": 1}},
    "not finite": {"kind": "publish", "facts": {"destination": "d", "digest": "x", "files": 1, "size_bytes": 1e999}},
    "missing": {"kind": "publish", "facts": {}},
    "nested": {"kind": "publish", "facts": {"destination": {"a": 1}, "digest": [], "files": {}, "size_bytes": None}},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_MESSAGES)
def test_a_hostile_message_is_refused_in_a_short_sentence(name: str) -> None:
    with pytest.raises(ContractError) as refusal:
        decode_message(REFUSED_MESSAGES[name])
    assert len(str(refusal.value)) < 400
    assert_inert(str(refusal.value))


@pytest.mark.parametrize("name", REFUSED_FACTS)
def test_hostile_facts_are_refused_in_a_short_sentence(name: str) -> None:
    with pytest.raises(ContractError) as refusal:
        decode_message(message(**REFUSED_FACTS[name])).parsed_facts()
    assert len(str(refusal.value)) < 400
    assert_inert(str(refusal.value))


@pytest.mark.parametrize("text", [text for text in HOSTILE_TEXTS if "\ud800" not in text])
def test_texts_of_a_message_are_cleaned(text: str) -> None:
    decoded = decode_message(message(message=text, kind=text, facts={text: [{"a": text}]}))
    assert_inert(decoded.message + decoded.kind + str(decoded.facts))
    assert "visible" in decoded.message
