"""The pages: health, readiness, metrics, on one port."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from dapt_operator.runtime.errors import PortTakenError
from dapt_operator.runtime.http_server import MonitoringServer


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_and_readiness_are_evaluated_at_each_request() -> None:
    said = {"alive": "", "ready": "nothing was listed yet"}
    with MonitoringServer(
        0, alive=lambda: said["alive"], ready=lambda: said["ready"], metrics=bytes
    ) as pages:
        assert get(pages.port, "/healthz") == (200, "ok\n")
        assert get(pages.port, "/readyz") == (503, "nothing was listed yet\n")
        said.update(alive="a reconcile thread ended", ready="")
        assert get(pages.port, "/healthz") == (503, "a reconcile thread ended\n")
        assert get(pages.port, "/readyz?verbose") == (200, "ok\n")


def test_metrics_are_computed_at_each_request() -> None:
    with MonitoringServer(0, alive=str, ready=str, metrics=lambda: b"dapt_gain 1.0\n") as pages:
        code, text = get(pages.port, "/metrics")
    assert code == 200
    assert text == "dapt_gain 1.0\n"


def test_any_other_page_names_those_that_there_are() -> None:
    with MonitoringServer(0, alive=str, ready=str, metrics=bytes) as pages:
        code, text = get(pages.port, "/secrets")
    assert code == 404
    assert "there are /healthz, /readyz and /metrics" in text


def test_taken_port_is_reported_in_one_line() -> None:
    with (
        MonitoringServer(0, alive=str, ready=str, metrics=bytes) as first,
        pytest.raises(
            PortTakenError,
            match=f"port {first.port} cannot be served: Address already in use; give another --port",
        ),
    ):
        MonitoringServer(first.port, alive=str, ready=str, metrics=bytes)
