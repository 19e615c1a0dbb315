"""Tests the proxy in front of the API server: it counts, cuts, refuses and falls silent where a fault is planted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3

from testcluster.api import Api, ApiError
from testcluster.api_proxy import ApiProxy, Cut, Refusal, Silence
from testcluster.calls import Call, parse_call
from testcluster.control_plane import ControlPlane
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[ApiProxy]:
    """A proxy of the test's own."""
    with ApiProxy(control_plane) as running:
        yield running


@pytest.fixture
def through(control_plane: ControlPlane, proxy: ApiProxy, namespace: str) -> Iterator[Api]:
    """A client that talks through the proxy as a service account that may do everything in its namespace."""
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
    control_plane.api.create(binding, namespace)
    token = control_plane.token_for(namespace, "default")
    api = Api(proxy.url, control_plane.authority_file, token=token, user_agent="someone/1.0 (linux)")
    eventually(lambda: _may_list(api, namespace), "the grant")
    proxy.calls.clear()
    yield api
    api.close()


def _may_list(api: Api, namespace: str) -> bool:
    try:
        api.list("ConfigMap", namespace)
    except ApiError:
        return False
    return True


def a_map(name: str) -> dict[str, Any]:
    """A ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


def test_requests_pass_and_are_counted_by_verb_and_resource(
    proxy: ApiProxy, through: Api, namespace: str
) -> None:
    through.create(a_map("one"), namespace)
    assert through.get("ConfigMap", "one", namespace)["metadata"]["name"] == "one"
    through.list("Job", namespace)
    assert proxy.count() == {("create", "configmaps"): 1, ("get", "configmaps"): 1, ("list", "batch/jobs"): 1}
    assert {call.agent for call in proxy.calls} == {"someone"}


def test_a_refusal_comes_as_often_as_it_was_planted(proxy: ApiProxy, through: Api, namespace: str) -> None:
    fault = proxy.plant(Refusal(429, retry_after_seconds=1), lambda call: call.is_write, times=2)
    for _ in range(2):
        with pytest.raises(ApiError, match="429 TooManyRequests: planted by a test"):
            through.create(a_map("one"), namespace)
    through.create(a_map("one"), namespace)
    assert fault.hits == 2


@pytest.mark.parametrize(("cut", "takes_effect"), [(Cut.BEFORE, False), (Cut.AFTER, True)])
def test_a_connection_is_cut_before_or_after_the_request_took_effect(
    control_plane: ControlPlane,
    proxy: ApiProxy,
    through: Api,
    namespace: str,
    cut: Cut,
    takes_effect: bool,
) -> None:
    proxy.plant(cut, lambda call: call.is_write)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        through.create(a_map("one"), namespace)
    assert (control_plane.api.find("ConfigMap", "one", namespace) is not None) is takes_effect


@pytest.mark.parametrize(("when", "takes_effect"), [("before", False), ("after", True)])
def test_a_hook_is_called_at_the_nth_write(
    control_plane: ControlPlane,
    proxy: ApiProxy,
    through: Api,
    namespace: str,
    when: Any,
    takes_effect: bool,
) -> None:
    seen: list[Call] = []
    proxy.at_write(2, seen.append, when=when)
    through.create(a_map("one"), namespace)
    through.list("ConfigMap", namespace)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        through.create(a_map("two"), namespace)
    assert [(call.verb, call.resource, call.body and call.body["metadata"]["name"]) for call in seen] == [
        ("create", "configmaps", "two")
    ]
    assert (control_plane.api.find("ConfigMap", "two", namespace) is not None) is takes_effect
    through.create(a_map("three"), namespace)


def test_a_request_that_is_never_answered(proxy: ApiProxy, through: Api, namespace: str) -> None:
    proxy.plant(Silence())
    path = through.path("ConfigMap", namespace)
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        through.request("GET", path, timeout_seconds=0.5)
    through.list("ConfigMap", namespace)


def test_proxied_watch_delivers_events_until_it_is_silenced(
    control_plane: ControlPlane, proxy: ApiProxy, namespace: str
) -> None:
    token = control_plane.token_for(namespace, "default")
    address = f"{proxy.url}/api/v1/namespaces/{namespace}/configmaps?watch=true&resourceVersion=0"
    eventually(lambda: control_plane.api.find("ConfigMap", "kube-root-ca.crt", namespace))
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }
    control_plane.api.create(binding, namespace)
    pool = urllib3.PoolManager(ca_certs=str(control_plane.authority_file), retries=False)
    with pool:
        answer = eventually(
            lambda: _opened(
                pool.request(
                    "GET",
                    address,
                    headers={"Authorization": f"Bearer {token}"},
                    preload_content=False,
                    timeout=urllib3.Timeout(connect=5, read=1),
                )
            )
        )
        assert answer is not None
        lines = iter(answer)
        assert json.loads(next(lines))["object"]["metadata"]["name"] == "kube-root-ca.crt"
        control_plane.api.create(a_map("heard"), namespace)
        assert json.loads(next(lines))["object"]["metadata"]["name"] == "heard"
        assert proxy.silence_watches() == 1
        control_plane.api.create(a_map("unheard"), namespace)
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            next(lines)
        answer.close()


def _opened(answer: urllib3.BaseHTTPResponse) -> urllib3.BaseHTTPResponse | None:
    if answer.status == 200:
        return answer
    answer.close()
    return None


@pytest.mark.parametrize(
    ("method", "path", "verb", "resource", "namespace", "name"),
    [
        ("GET", "/api/v1/pods?watch=true", "watch", "pods", "", ""),
        ("GET", "/api/v1/namespaces/a", "get", "namespaces", "", "a"),
        ("GET", "/api/v1/namespaces/a/pods/b/log?tailLines=2", "get", "pods/log", "a", "b"),
        ("PUT", "/apis/dapt.dev/v1alpha1/namespaces/a/domainadaptations/b/status", "update",
         "dapt.dev/domainadaptations/status", "a", "b"),
        ("PATCH", "/apis/batch/v1/namespaces/a/jobs/b", "patch", "batch/jobs", "a", "b"),
        ("DELETE", "/api/v1/namespaces/a/secrets", "deletecollection", "secrets", "a", ""),
        ("GET", "/apis/batch/v1", "get", "", "", ""),
        ("GET", "/readyz", "get", "", "", ""),
    ],
)  # fmt: skip
def test_api_call_is_parsed_from_its_url(
    method: str, path: str, verb: str, resource: str, namespace: str, name: str
) -> None:
    call = parse_call(method, path, "agent/1.2 (linux)")
    assert (call.verb, call.resource, call.namespace, call.name, call.agent) == (
        verb, resource, namespace, name, "agent",
    )  # fmt: skip
