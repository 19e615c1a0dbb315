"""The commands on a cluster before a server that is none, or answers in other shapes: sentences, no traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from dapt_client.access import ClusterAccess
from dapt_operator.cli.commands.cluster.explain import explain
from dapt_operator.cli.commands.cluster.logs import LogQuery, log_lines
from dapt_operator.cli.commands.cluster.overview import adaptation_overview, adaptations_table
from dapt_operator.cli.errors import UserError
from dapt_operator.cluster.answers import (
    decoded_object,
    decoded_page,
    reason_and_message,
    stored_object,
    whole_number,
)
from dapt_operator.cluster.kubernetes import client as kubernetes_client
from support.api_double import ApiDouble, Odd

DEEP = b"[" * 200_000 + b"]" * 200_000
ANSWERS = {
    "list": b"[]",
    "text": b'"x"',
    "number": b"1",
    "null": b"null",
    "NaN": b"NaN",
    "deep": DEEP,
    "deep in an object": b'{"items": %s, "metadata": %s}' % (DEEP, DEEP),
    "digits": b'{"metadata": %s}' % (b"9" * 5000),
    "items that are text": b'{"items": "abc", "metadata": {}}',
    "items that are lists": b'{"items": [[1]], "metadata": 5}',
    "items without metadata": b'{"items": [{}]}',
    "metadata that is a list": b'{"items": [{"metadata": []}], "metadata": []}',
    "name that is a number": b'{"items": [{"metadata": {"name": 5}}], "metadata": {"name": 5}}',
    "status that is a list": b'{"items": [{"metadata": {"name": "a"}, "status": [1]}],'
    b' "metadata": {"name": "a"}, "status": [1]}',
    "spec that is a number": b'{"items": [{"metadata": {"name": "a"}, "spec": 1}],'
    b' "metadata": {"name": "a"}, "spec": 1}',
    "generation that is text": b'{"items": [{"metadata": {"name": "a", "generation": "x"}}],'
    b' "metadata": {"name": "a", "generation": "x"}}',
}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiDouble]:
    monkeypatch.setattr(kubernetes_client, "FIRST_PAUSE_SECONDS", 0.001)
    with ApiDouble() as double:
        yield double


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_of_another_shape_is_a_sentence(double: ApiDouble, name: str) -> None:
    access = ClusterAccess(double.connection())
    double.odd("GET", *[Odd(200, {}, ANSWERS[name])] * 20)
    for call in (
        lambda: adaptation_overview(access.adaptation("a")),
        lambda: adaptations_table(access.adaptations(), with_namespace=True),
        lambda: explain(access, "a"),
        lambda: list(log_lines(access, "a", LogQuery())),
        lambda: access.profile("a"),
        lambda: access.profile(None),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert all("\n" not in problem for problem in caught.value.problems)


def test_statuses_of_pods_have_their_shapes() -> None:
    for status in (
        {"conditions": "x"},
        {"conditions": ["x"]},
        {"containerStatuses": [{"state": "x"}]},
        {"initContainerStatuses": [{"state": {"waiting": 5}}]},
        {"containerStatuses": {"name": "trainer"}},
    ):
        with pytest.raises(ValueError, match=r"no object of Kubernetes \(status\."):
            stored_object({"metadata": {"name": "p"}, "status": status})


def test_objects_as_kubernetes_sends_them_are_taken() -> None:
    stored = {
        "metadata": {"name": "p", "labels": None, "annotations": {"a": "b"}, "creationTimestamp": None},
        "spec": {"anything": [1]},
        "status": {
            "phase": "Pending",
            "conditions": None,
            "containerStatuses": [{"name": "trainer", "ready": False, "state": {"waiting": {"reason": "x"}}}],
        },
    }
    assert stored_object(stored) is stored
    assert decoded_page(json.dumps({"items": [stored]}).encode())["items"] == [stored]
    assert decoded_page(b'{"items": null}') == {"items": None}


@pytest.mark.parametrize("content", [DEEP, b"[]", b"<html>", b"\xff", b"{} {}"])
def test_refusal_that_is_no_status_is_quoted_as_text(content: bytes) -> None:
    reason, message = reason_and_message(content)
    assert reason == ""
    assert len(message) <= 200
    with pytest.raises(ValueError, match=r".+"):
        decoded_object(content)


@pytest.mark.parametrize("text", ["", "²", "٣", "-1", "1.5", "1" * 19, "x"])
def test_texts_that_are_no_whole_number(text: str) -> None:
    assert whole_number(text) is None
    assert whole_number("18") == 18


def test_wait_that_a_server_asks_for_in_other_digits_is_not_read(double: ApiDouble) -> None:
    access = ClusterAccess(double.connection())
    double.odd("GET", *[Odd(429, {"Retry-After": "\xb2"}, b"slow down")] * 2)
    with pytest.raises(UserError, match="slow down"):
        access.find("a")
