"""Tests the lists that find what watches have missed: each on its own, cheap when nothing has changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dapt_operator.cluster.kubernetes import Connection, Store, client, resync
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.resync import REFUSED_SECONDS, Resync
from dapt_operator.cluster.port import Key
from support.api_double import ApiDouble, Odd
from support.builders import profile
from support.cluster_objects import KEY, adaptation, job, pod

FORBIDDEN = Odd(403, {}, b'{"reason":"Forbidden","message":"no right"}')
FINANCE = Key("finance", "clinical-llama")
INTERVAL = 600.0


class Lists:
    """The lists of some namespaces, before an API server, with a clock of the test's own."""

    def __init__(self, double: ApiDouble, namespaces: tuple[str, ...]) -> None:
        self.double = double
        self.now = 1000.0
        self.store = Store()
        self.api = ApiServerClient(double.connection())
        self.resync = Resync(self.api, self.store, namespaces, lambda: self.now)

    def listed(self) -> set[Key]:
        """The changes that the lists find which are due now."""
        return self.resync.list_due(INTERVAL).changed

    def requests(self, pattern: str = "") -> list[str]:
        """What was sent since the last call."""
        sent = [str(request) for request in self.double.sent(pattern)]
        self.double.requests.clear()
        return sent


@pytest.fixture
def made(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Lists]]:
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.001)
    found: list[Lists] = []
    yield found
    for item in found:
        item.api.close()


@pytest.fixture
def everywhere(double: ApiDouble, made: list[Lists]) -> Lists:
    made.append(Lists(double, ()))
    return made[-1]


@pytest.fixture
def in_two(double: ApiDouble, made: list[Lists]) -> Lists:
    made.append(Lists(double, ("health", "finance")))
    return made[-1]


def add(double: ApiDouble, body: dict[str, Any]) -> dict[str, Any]:
    plural = {"DomainAdaptation": "domainadaptations", "Job": "jobs", "Pod": "pods"}[body["kind"]]
    root = "/api/v1" if body["apiVersion"] == "v1" else f"/apis/{body['apiVersion']}"
    metadata = body["metadata"]
    return double.add(f"{root}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}", body)


def elsewhere() -> dict[str, Any]:
    found = adaptation()
    return found | {"metadata": found["metadata"] | {"namespace": "finance", "uid": "uid-finance"}}


def test_forbidden_kind_stops_no_other_list_and_is_tried_again(everywhere: Lists, double: ApiDouble) -> None:
    add(double, adaptation())
    double.odd("GET .*/jobs$", FORBIDDEN)
    assert everywhere.listed() == {KEY}
    (failure,) = everywhere.resync.failures()
    assert (failure.kind, failure.namespace) == ("Job", "")
    assert failure.error == "GET /apis/batch/v1/jobs: 403 Forbidden: no right"
    assert len(everywhere.requests("GET .*/pods")) == 1
    assert not everywhere.resync.has_listed("health"), "nothing is decided without the Jobs"
    assert "Job" not in everywhere.resync.listable_kinds(None)
    assert "Pod" in everywhere.resync.listable_kinds(None)
    everywhere.now += REFUSED_SECONDS
    everywhere.listed()
    assert everywhere.requests() == ["GET /apis/batch/v1/jobs"]
    assert everywhere.resync.failures() == ()
    assert everywhere.resync.has_listed("health")


def test_forbidden_namespace_stops_no_other_namespace(in_two: Lists, double: ApiDouble) -> None:
    add(double, adaptation())
    add(double, elsewhere())
    double.odd("GET .*/namespaces/health/", *[FORBIDDEN] * 4)
    assert in_two.listed() == {FINANCE}
    assert in_two.resync.has_listed("finance")
    assert not in_two.resync.has_listed("health")
    assert {failure.namespace for failure in in_two.resync.failures()} == {"health"}
    in_two.now += REFUSED_SECONDS
    assert in_two.listed() == {KEY}
    assert in_two.resync.has_listed("health")


def test_answer_that_is_no_list_harms_its_own_list_alone(everywhere: Lists, double: ApiDouble) -> None:
    add(double, adaptation())
    double.odd("GET .*/pods", *[Odd(200, {}, b'{"metadata": {}, "items": [7]}')] * 4)
    assert everywhere.listed() == {KEY}
    (failure,) = everywhere.resync.failures()
    assert failure.kind == "Pod"


def test_connection_that_is_cut_stops_no_other_list(everywhere: Lists, double: ApiDouble) -> None:
    add(double, adaptation())
    double.odd("GET .*/adaptationprofiles", *[Odd(cut=True)] * 2)
    found = everywhere.resync.list_due(INTERVAL)
    assert (found.changed, found.unreachable) == ({KEY}, "")
    assert [failure.kind for failure in everywhere.resync.failures()] == ["AdaptationProfile"]


def test_unreachable_server_is_asked_for_one_list_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.001)
    now = [0.0]
    api = ApiServerClient(Connection("http://127.0.0.1:9"))
    lists = Resync(api, Store(), ("health",), lambda: now[0])
    found = lists.list_due(INTERVAL)
    assert found.unreachable is not None
    assert "Connection refused" in found.unreachable
    assert [failure.is_unreachable for failure in lists.failures()] == [True]
    assert lists.list_due(INTERVAL).unreachable is None, "nothing is due before the pause is over"
    now[0] += resync.RETRY_SECONDS
    assert lists.list_due(INTERVAL).unreachable
    api.close()


def test_quiet_resync_reads_metadata_from_the_servers_memory(everywhere: Lists, double: ApiDouble) -> None:
    add(double, adaptation())
    of = add(double, job())
    add(double, pod(of))
    everywhere.listed()
    double.requests.clear()
    everywhere.now += INTERVAL
    assert everywhere.listed() == set()
    listed = [request for request in double.requests if "jobsets" not in request.path]
    assert len(listed) == 4
    for request in listed:
        assert "as=PartialObjectMetadataList" in request.headers["Accept"]
        assert request.query["resourceVersion"] == "0"


def test_requested_list_shows_all_that_was_written_before(in_two: Lists, double: ApiDouble) -> None:
    in_two.listed()
    double.requests.clear()
    in_two.resync.request("health", after_seconds=5.0)
    in_two.listed()
    assert in_two.requests() == [], "it is not due yet"
    in_two.now += 5.0
    in_two.listed()
    assert {request.path.split("/")[-2] for request in double.requests} == {"health"}
    assert all("resourceVersion" not in request.query for request in double.requests)


def test_only_objects_that_changed_are_read_again(everywhere: Lists, double: ApiDouble) -> None:
    add(double, adaptation())
    of = add(double, job())
    ended = add(double, pod(of))
    add(double, pod(of, 1))
    everywhere.listed()
    double.requests.clear()
    add(double, ended | {"status": ended["status"] | {"phase": "Failed"}})
    everywhere.now += INTERVAL
    assert everywhere.listed() == {KEY}
    single = [request for request in double.requests if "fieldSelector" in request.query]
    assert [request.query["fieldSelector"] for request in single] == [
        f"metadata.name={ended['metadata']['name']}"
    ]
    phases = {item["status"]["phase"] for item in everywhere.store.with_children(KEY).pods}
    assert phases == {"Failed", "Running"}


def test_many_changes_are_read_as_one_list(
    everywhere: Lists, double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere.listed()
    monkeypatch.setattr(resync, "MAX_SINGLE_READS", 1)
    add(double, adaptation())
    add(double, elsewhere())
    double.requests.clear()
    everywhere.now += INTERVAL
    assert everywhere.listed() == {KEY, FINANCE}
    assert not any("fieldSelector" in request.query for request in double.requests)


def test_requested_object_is_read_before_its_list_is_due(in_two: Lists, double: ApiDouble) -> None:
    add(double, adaptation())
    in_two.listed()
    add(double, adaptation(profile="other"))
    in_two.requests()
    in_two.resync.request_object("DomainAdaptation", KEY.namespace, KEY.name)
    assert in_two.listed() == {KEY}
    (request,) = double.requests
    assert request.query["fieldSelector"] == f"metadata.name={KEY.name}"
    assert "resourceVersion" not in request.query
    assert in_two.store.keys_of_profile("other") == (KEY,)
    in_two.requests()
    assert in_two.listed() == set()
    assert in_two.requests() == [], "it is read once"


def test_requested_object_that_cannot_be_read_makes_its_list_due(
    everywhere: Lists, double: ApiDouble
) -> None:
    everywhere.listed()
    add(double, adaptation())
    double.odd("GET .*/domainadaptations", FORBIDDEN)
    everywhere.resync.request_object("DomainAdaptation", KEY.namespace, KEY.name)
    assert everywhere.listed() == set()
    everywhere.now += REFUSED_SECONDS
    assert everywhere.listed() == {KEY}


def test_requested_profile_concerns_those_who_name_it(everywhere: Lists, double: ApiDouble) -> None:
    add(double, adaptation(profile="small"))
    everywhere.listed()
    double.add("/apis/dapt.dev/v1alpha1/adaptationprofiles/small", profile(name="small"))
    everywhere.resync.request_object("AdaptationProfile", "", "small")
    assert everywhere.listed() == {KEY}


def test_deletion_that_no_watch_reported_is_found(everywhere: Lists, double: ApiDouble) -> None:
    add(double, adaptation())
    of = add(double, job())
    everywhere.listed()
    del double.objects[f"/apis/batch/v1/namespaces/health/jobs/{of['metadata']['name']}"]
    double.version += 1
    everywhere.now += INTERVAL
    assert everywhere.listed() == {KEY}
    assert everywhere.store.with_children(KEY).jobs == ()


def test_objects_of_others_with_our_labels_are_not_read_one_by_one(
    everywhere: Lists, double: ApiDouble
) -> None:
    foreign = job()
    foreign["metadata"]["ownerReferences"] = []
    add(double, foreign)
    everywhere.listed()
    double.requests.clear()
    everywhere.now += INTERVAL
    everywhere.listed()
    assert not any("fieldSelector" in request.query for request in double.requests)


def test_jobsets_are_tried_again_after_a_minute(everywhere: Lists, double: ApiDouble) -> None:
    everywhere.listed()
    assert everywhere.resync.has_listed("health"), "JobSet is not needed"
    double.groups.add("jobset.x-k8s.io/v1alpha2")
    everywhere.now += resync.ABSENT_SECONDS
    everywhere.requests()
    everywhere.listed()
    assert everywhere.requests() == ["GET /apis/jobset.x-k8s.io/v1alpha2/jobsets"]
    assert "JobSet" in everywhere.resync.listable_kinds(None)
