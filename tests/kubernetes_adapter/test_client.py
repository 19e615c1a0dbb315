"""The JSON client before odd answers: retries where they help, limits on every wait, clear errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dapt_operator.cluster.kubernetes import (
    ApiError,
    ApiUnavailableError,
    Connection,
    NotLeaderError,
    RequestRefusedError,
)
from dapt_operator.cluster.kubernetes import client as kubernetes_client
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.connection import FixedAuthorization
from support.api_double import ApiDouble, Odd

MAPS = "/api/v1/namespaces/health/configmaps"
ONE = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "one", "namespace": "health"}}
BUSY = Odd(429, {"Retry-After": "0"}, b'{"reason":"TooManyRequests","message":"slow down"}')


@pytest.fixture
def client(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServerClient]:
    monkeypatch.setattr(kubernetes_client, "FIRST_PAUSE_SECONDS", 0.001)
    made = ApiServerClient(double.connection())
    yield made
    made.close()


@pytest.mark.parametrize(
    "odd",
    [
        BUSY,
        Odd(500, {}, b'{"message":"etcdserver: request timed out"}'),
        Odd(503, {}, b"upstream is away"),
        Odd(cut=True),
        Odd(cut=True, after_effect=True),
        Odd(200, {}, b'{"kind": "Conf'),
    ],
    ids=["429", "500", "503", "cut before", "cut after", "broken JSON"],
)
def test_a_creation_takes_effect_once_whatever_comes_back(
    double: ApiDouble, client: ApiServerClient, odd: Odd
) -> None:
    double.odd("POST", odd)
    if odd.after_effect:
        with pytest.raises(ApiError, match="409 AlreadyExists"):
            client.post(MAPS, ONE)
    else:
        assert client.post(MAPS, ONE)["metadata"]["uid"]
    assert len(double.sent("POST")) == 2
    assert list(double.objects) == [f"{MAPS}/one"]


def test_after_a_few_attempts_it_is_unavailable(double: ApiDouble, client: ApiServerClient) -> None:
    double.odd("GET", *[BUSY] * 10)
    with pytest.raises(ApiUnavailableError) as raised:
        client.get(f"{MAPS}/one")
    assert str(raised.value) == f"GET {MAPS}/one: 429 TooManyRequests: slow down"
    assert len(double.sent("GET")) == 4


def test_no_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_client, "FIRST_PAUSE_SECONDS", 0.001)
    client = ApiServerClient(Connection("http://127.0.0.1:9"))
    with pytest.raises(ApiUnavailableError, match=r"^GET /version: no answer NewConnectionError: "):
        client.get("/version")
    client.close()


def test_what_is_refused_is_not_sent_again(double: ApiDouble, client: ApiServerClient) -> None:
    body = b'{"reason":"Forbidden","message":"exceeded quota: maps, used: count/configmaps=5"}'
    double.odd("POST", Odd(403, {}, body))
    with pytest.raises(RequestRefusedError) as raised:
        client.post(MAPS, ONE)
    assert str(raised.value) == f"POST {MAPS}: 403 Forbidden: exceeded quota: maps, used: count/configmaps=5"
    assert len(double.requests) == 1


def test_a_redirect_is_not_followed(double: ApiDouble, client: ApiServerClient) -> None:
    double.odd("GET", Odd(302, {"Location": "http://127.0.0.1:9/secret"}))
    with pytest.raises(ApiError, match="302"):
        client.get(f"{MAPS}/one")
    assert len(double.requests) == 1


def test_an_answer_that_never_ends_is_given_up(double: ApiDouble, client: ApiServerClient) -> None:
    double.odd("GET", Odd(drip_seconds=0.01))
    with pytest.raises(ApiUnavailableError, match=r"answer not complete after 0\.2 s"):
        client.get(f"{MAPS}/one", attempts=1, timeout_seconds=0.2)


def test_an_answer_that_is_too_large_is_given_up(
    double: ApiDouble, client: ApiServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "MAX_ANSWER_BYTES", 1000)
    double.odd("GET", Odd(200, {}, 2000 * b" "))
    with pytest.raises(ApiUnavailableError, match="answer of more than 1000 bytes"):
        client.get(f"{MAPS}/one", attempts=1)


def test_of_a_text_only_the_first_bytes_are_read(double: ApiDouble, client: ApiServerClient) -> None:
    double.logs["one"] = 5000 * b"x"
    path = "/api/v1/namespaces/health/pods/one/log"
    assert client.text(path, {}, max_bytes=1000, timeout_seconds=5) == 1000 * b"x"
    assert client.get(f"{MAPS}/one") is None, "the connection in between is not mixed up"


def test_a_list_comes_in_pages_of_one_moment(
    double: ApiDouble, client: ApiServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "PAGE_ITEMS", 2)
    for number in range(5):
        double.add(
            f"{MAPS}/m{number}",
            {"kind": "ConfigMap", "metadata": {"name": f"m{number}", "namespace": "health"}},
        )
    pages = list(client.pages(MAPS))
    assert [[item["metadata"]["name"] for item in page["items"]] for page in pages] == [
        ["m0", "m1"], ["m2", "m3"], ["m4"],
    ]  # fmt: skip
    assert [request.query.get("continue") for request in double.requests] == [None, "2", "4"]


def test_who_may_not_write_sends_nothing(double: ApiDouble) -> None:
    client = ApiServerClient(double.connection(), may_write=lambda: False)
    for verb in (
        lambda: client.post(MAPS, ONE),
        lambda: client.put(f"{MAPS}/one", ONE),
        lambda: client.apply(f"{MAPS}/one", ONE),
        lambda: client.delete(f"{MAPS}/one", {}),
    ):
        with pytest.raises(NotLeaderError, match="the Lease is not held"):
            verb()
    assert client.get(f"{MAPS}/one") is None, "reading is allowed"
    assert double.sent("POST|PUT|PATCH|DELETE") == []
    client.close()


def test_client_checks_the_right_to_write_before_each_attempt(
    double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "FIRST_PAUSE_SECONDS", 0.001)
    answers = [True, False]
    client = ApiServerClient(double.connection(), may_write=lambda: answers.pop(0))
    double.odd("POST", BUSY)
    with pytest.raises(NotLeaderError):
        client.post(MAPS, ONE)
    assert len(double.requests) == 1
    client.close()


def test_closing_ends_the_rests(double: ApiDouble) -> None:
    client = ApiServerClient(double.connection())
    double.odd("GET", *[Odd(503, {"Retry-After": "5"})] * 4)
    client.close()
    with pytest.raises(ApiUnavailableError):
        client.get(f"{MAPS}/one")
    assert len(double.requests) == 1


def test_connections_are_used_again(double: ApiDouble, client: ApiServerClient) -> None:
    for _ in range(5):
        client.get(f"{MAPS}/one")
    assert (double.num_connections, len(double.requests)) == (1, 5)


def test_the_token_and_who_we_are_go_with_each_request(double: ApiDouble) -> None:
    client = ApiServerClient(double.connection(FixedAuthorization("Bearer secret")))
    client.get(f"{MAPS}/one")
    (request,) = double.requests
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["User-Agent"].startswith("dapt-operator/")
    client.close()
