"""Tests what observe polls: a run's ConfigMap, its place in a queue, a failed pod's log."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from dapt_operator.cluster.kubernetes.polls import pod_logs
from dapt_operator.cluster.kubernetes.polls.pod_logs import last_lines
from dapt_operator.launchers import indexed_job
from dapt_operator.launchers.observe.quota import quota_of
from dapt_operator.stage_run import Quota
from support.api_double import Adapter, Odd
from support.cluster_objects import KEY, adaptation, job, pod, rendered
from support.launch_builders import owner, profile, stage_run
from support.pod_objects import wait_until

HEALTH = "/api/v1/namespaces/health"
WORKLOADS = "/apis/kueue.x-k8s.io/v1beta1/namespaces/health/workloads"


@pytest.fixture(autouse=True)
def _resource(adapter: Adapter) -> None:
    adapter.add_resource(adaptation())


@pytest.fixture
def clock(adapter: Adapter) -> list[float]:
    now = [1000.0]
    adapter.clock = lambda: now[0]
    return now


def children(adapter: Adapter) -> Any:
    return adapter.cluster.observe(KEY).children


# --- stage.json ---


@pytest.fixture
def live(adapter: Adapter) -> dict[str, Any]:
    config = rendered()[0]
    adapter.cluster.apply(KEY, config)
    made = job()
    adapter.store.put(made)
    adapter.store.put(pod(made))
    adapter.double.requests.clear()
    return config


def looks(adapter: Adapter) -> int:
    return len(adapter.double.sent("GET .*/configmaps/"))


def test_stage_file_is_polled_after_a_delay_and_then_periodically(
    adapter: Adapter, clock: list[float], live: dict[str, Any]
) -> None:
    name = live["metadata"]["name"]
    digest = hashlib.sha256(live["data"]["stage.json"].encode()).hexdigest()
    assert (children(adapter).stage_digests, looks(adapter)) == ({}, 0)
    clock[0] += 10
    assert (children(adapter).stage_digests, looks(adapter)) == ({name: digest}, 1)
    clock[0] += 44
    assert (children(adapter).stage_digests, looks(adapter)) == ({name: digest}, 1), (
        "the last look still counts"
    )
    path = f"{HEALTH}/configmaps/{name}"
    adapter.double.objects[path]["data"]["stage.json"] = "{}"
    clock[0] += 1
    changed = hashlib.sha256(b"{}").hexdigest()
    assert (children(adapter).stage_digests, looks(adapter)) == ({name: changed}, 2)
    del adapter.double.objects[path]
    clock[0] += 45
    assert children(adapter).stage_digests == {name: None}


def test_failed_poll_returns_the_previous_result(
    adapter: Adapter, clock: list[float], live: dict[str, Any]
) -> None:
    children(adapter)
    adapter.double.odd("GET .*/configmaps/", Odd(503))
    clock[0] += 10
    assert children(adapter).stage_digests == {}
    clock[0] += 45
    seen = children(adapter).stage_digests
    assert list(seen) == [live["metadata"]["name"]]
    adapter.double.odd("GET .*/configmaps/", Odd(cut=True))
    clock[0] += 45
    assert children(adapter).stage_digests == seen
    assert looks(adapter) == 3, "one attempt each"


def test_ended_run_is_not_polled(adapter: Adapter, clock: list[float], live: dict[str, Any]) -> None:
    children(adapter)
    clock[0] += 100
    adapter.store.put(job(10**6, conditions=[{"type": "Complete", "status": "True"}]))
    assert (children(adapter).stage_digests, looks(adapter)) == ({}, 0)


# --- Jobs that lack pods ---


def failed_create(name: str, job_name: str, message: str, last: str) -> dict[str, Any]:
    return {
        "kind": "Event",
        "metadata": {"name": name, "namespace": "health"},
        "involvedObject": {"kind": "Job", "name": job_name},
        "reason": "FailedCreate",
        "message": message,
        "lastTimestamp": last,
    }


def test_events_of_a_job_that_lacks_pods_are_polled_after_a_delay(
    adapter: Adapter, clock: list[float]
) -> None:
    made = job()
    adapter.store.put(made)
    name = made["metadata"]["name"]
    for event, message, last in (("old", "no such service account", "2026-01-31T12:00:00Z"),
                                 ("new", "exceeded quota: b", "2026-01-31T12:00:09Z")):  # fmt: skip
        adapter.double.add(f"{HEALTH}/events/{event}", failed_create(event, name, message, last))
    assert children(adapter).refusals == {}
    clock[0] += 2.9
    assert (children(adapter).refusals, adapter.double.sent("GET .*/events")) == ({}, [])
    clock[0] += 0.1
    assert children(adapter).refusals == {name: "exceeded quota: b"}
    (asked,) = adapter.double.sent("GET .*/events")
    assert asked.query["fieldSelector"] == (
        f"involvedObject.kind=Job,involvedObject.name={name},reason=FailedCreate"
    )
    adapter.store.put(pod(made, 0))
    clock[0] += 60
    assert children(adapter).refusals == {name: "exceeded quota: b"}, "the second of two is still missing"
    adapter.store.put(pod(made, 1))
    clock[0] += 60
    assert children(adapter).refusals == {}, "it has both now"


# --- pods that do not start ---


def creating(of: dict[str, Any], index: int) -> dict[str, Any]:
    """A pod on its node that says nothing about why it does not start."""
    found = pod(of, index, phase="Pending")
    found["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}
    return found


def test_events_of_one_waiting_pod_of_a_run_are_polled_after_a_delay(
    adapter: Adapter, clock: list[float]
) -> None:
    made = job()
    pods = [creating(made, index) for index in (0, 1)]
    for item in (made, *pods):
        adapter.store.put(item)
    name, uid = pods[0]["metadata"]["name"], pods[0]["metadata"]["uid"]
    reported = {"type": "Warning", "reason": "FailedMount", "message": "timed out", "lastTimestamp": None}
    about = {"kind": "Pod", "name": name, "uid": uid}
    place = {"name": "e", "namespace": "health"}
    adapter.double.add(f"{HEALTH}/events/e", {"metadata": place, "involvedObject": about} | reported)
    assert children(adapter).pod_events == {}
    clock[0] += 14.9
    assert (children(adapter).pod_events, adapter.double.sent("GET .*/events")) == ({}, [])
    clock[0] += 0.1
    assert children(adapter).pod_events == {name: "FailedMount: timed out"}
    clock[0] += 29.9
    children(adapter)
    (asked,) = adapter.double.sent("GET .*/events")
    assert asked.query["fieldSelector"] == f"involvedObject.name={name},involvedObject.uid={uid}"
    adapter.store.put(pod(made, 0))
    assert children(adapter).pod_events == {}, "the other one is polled from now on"


# --- queues ---


@pytest.fixture
def queued(adapter: Adapter) -> dict[str, Any]:
    of = job(run=stage_run(nodes=2, queue="research"))
    assert of["spec"]["suspend"] is True
    adapter.store.put(of)
    return of


def workload(uid: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Workload",
        "metadata": {"name": "w", "namespace": "health", "labels": {"kueue.x-k8s.io/job-uid": uid}},
        "spec": {"queueName": "research", "podSets": [{"template": {"spec": {}}}]},
        "status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": message}]},
    }


def test_without_kueue_there_is_no_workload_and_few_questions(
    adapter: Adapter, clock: list[float], queued: dict[str, Any]
) -> None:
    for _ in range(10):
        assert children(adapter).workloads == {}
        clock[0] += 5
    assert [str(request) for request in adapter.double.requests] == ["GET /apis/kueue.x-k8s.io"]


def test_the_workload_of_a_queued_run_is_found_by_its_uid(
    adapter: Adapter, clock: list[float], queued: dict[str, Any]
) -> None:
    adapter.double.groups.add("kueue.x-k8s.io/v1beta1")
    adapter.double.add(f"{WORKLOADS}/other", workload("another", "not ours"))
    assert children(adapter).workloads == {}, "Kueue has not made it yet"
    adapter.double.add(f"{WORKLOADS}/w", workload("job-1", "insufficient unused quota"))
    clock[0] += 4.9
    assert children(adapter).workloads == {}
    clock[0] += 0.1
    (found,) = children(adapter).workloads.items()
    assert found[0] == queued["metadata"]["name"]
    assert found[1]["status"]["conditions"][0]["message"] == "insufficient unused quota"
    assert found[1]["spec"] == {"queueName": "research"}, "without the pods' templates"
    assert adapter.double.requests[-1].query["labelSelector"] == "kueue.x-k8s.io/job-uid=job-1"
    asked = len(adapter.double.requests)
    clock[0] += 100
    children(adapter)
    clock[0] += 29
    children(adapter)
    assert len(adapter.double.requests) == asked + 1, "who waits long is looked at less often"
    adapter.double.odd("GET", Odd(503))
    clock[0] += 1
    assert list(children(adapter).workloads) == [queued["metadata"]["name"]], "a failed look changes nothing"


def test_without_the_right_to_read_workloads_the_condition_says_so(
    adapter: Adapter, clock: list[float], queued: dict[str, Any]
) -> None:
    adapter.double.groups.add("kueue.x-k8s.io/v1beta1")
    adapter.double.odd("GET .*/workloads", Odd(403, {}, b'{"reason":"Forbidden","message":"no right"}'))
    found = children(adapter).workloads[queued["metadata"]["name"]]
    assert quota_of(queued["metadata"]["labels"], suspended=True, workload=found) == (
        Quota.WAITING,
        "its queue decides, and the operator may not read Kueue's Workloads to say what it waits for: set"
        " features.kueue=true in the operator's chart, or remove spec.queue",
    )
    clock[0] += 5
    assert children(adapter).workloads == {}, "the right was granted, and Kueue has made no Workload yet"


def test_an_admitted_run_has_no_workload(
    adapter: Adapter, clock: list[float], queued: dict[str, Any]
) -> None:
    adapter.double.groups.add("kueue.x-k8s.io/v1beta1")
    adapter.double.add(f"{WORKLOADS}/w", workload("job-1", "…"))
    assert children(adapter).workloads != {}
    admitted = job(10**6, run=stage_run(nodes=2, queue="research"))
    admitted["spec"]["suspend"] = False
    adapter.store.put(admitted)
    assert children(adapter).workloads == {}


# --- logs ---


def fail(adapter: Adapter, of: dict[str, Any], index: int, second: int, code: int = 77) -> str:
    ended = {"exitCode": code, "finishedAt": f"2026-01-31T12:00:{second:02d}Z"}
    failed = pod(of, index, phase="Failed", ended=ended)
    adapter.store.put(failed)
    return str(failed["metadata"]["name"])


def logs_read(adapter: Adapter) -> list[str]:
    return sorted(request.path.split("/")[-2] for request in adapter.double.sent("/log$"))


def test_the_last_lines_of_a_failed_pod_are_read_once(adapter: Adapter) -> None:
    of = job()
    adapter.store.put(of)
    name = fail(adapter, of, 0, 1)
    adapter.double.logs[name] = b"one\n\x1b[31mtwo\x1b[0m\x00\n"
    assert children(adapter).logs == {name: ("one", "two")}
    assert children(adapter).logs == {name: ("one", "two")}
    (request,) = adapter.double.sent("/log$")
    assert request.query == {"container": "trainer", "tailLines": "20", "limitBytes": "65536"}


def test_of_a_large_gang_the_first_that_failed_are_read_and_not_those_that_were_stopped(
    adapter: Adapter,
) -> None:
    of = job()
    adapter.store.put(of)
    names = [fail(adapter, of, index, 30 - index) for index in range(8)]
    fail(adapter, of, 8, 1, code=143)
    adapter.store.put(pod(of, 9, phase="Failed"))  # it never ran
    children(adapter)
    assert logs_read(adapter) == sorted(names[4:])


def test_log_of_an_older_run_is_not_read_again_but_kept(adapter: Adapter) -> None:
    first = job()
    adapter.store.put(first)
    name = fail(adapter, first, 0, 1)
    adapter.double.logs[name] = b"why"
    children(adapter)
    second = job(uid="job-2", run=stage_run(nodes=2, try_number=2, fence=2))
    adapter.store.put(second)
    fail(adapter, first, 1, 2)
    assert children(adapter).logs == {name: ("why",)}
    assert logs_read(adapter) == [name]


def test_a_log_that_comes_late_wakes_the_adaptation(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_logs, "WAIT_SECONDS", 0.0)
    of = job()
    adapter.store.put(of)
    name = fail(adapter, of, 0, 1)
    adapter.double.logs[name] = b"late"
    children(adapter)
    wait_until(lambda: adapter.woken == [KEY] or children(adapter).logs != {}, "the lines")
    assert children(adapter).logs == {name: ("late",)}


def test_a_log_that_cannot_be_read_is_no_harm(adapter: Adapter) -> None:
    of = job()
    adapter.store.put(of)
    fail(adapter, of, 0, 1)
    adapter.double.odd("/log$", Odd(500, {}, b"dial tcp: no route to host"))
    assert children(adapter).logs == {}
    assert children(adapter).logs == {}
    assert len(logs_read(adapter)) == 1


def test_lines_are_bounded_and_without_control_characters() -> None:
    text = b"".join(b"line %d\r\n" % number for number in range(30)) + 1000 * b"x" + b"\xff\x07\n\n"
    lines = last_lines(text)
    assert len(lines) == 20
    assert lines[0] == "line 11"
    assert lines[-1] == 397 * "x" + "..."
    assert last_lines(b"") == ()


def test_shared_objects_cost_nothing_to_observe(adapter: Adapter) -> None:
    for manifest in indexed_job.shared(profile(), owner(), 2):
        adapter.cluster.apply(KEY, manifest)
    assert children(adapter).jobs == ()
