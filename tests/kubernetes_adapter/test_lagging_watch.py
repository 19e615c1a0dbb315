"""Tests a lagging watch: the end of a Job may be reported before the end of its pods."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dapt_operator.cluster.kubernetes import ApiError
from dapt_operator.launchers import all_states
from dapt_operator.stage_run import RunPhase
from support.api_double import Adapter, Odd
from support.cluster_objects import KEY, adaptation, job, pod
from support.launch_builders import stage_run

PODS = "/api/v1/namespaces/health/pods"


@pytest.fixture(autouse=True)
def _resource(adapter: Adapter) -> None:
    adapter.add_resource(adaptation())
    adapter.double.version = 10**6  # later than all that the tests' objects say


def over(kind: str, seconds_ago: float = 1.0, **changes: Any) -> dict[str, Any]:
    since = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = job(conditions=[{"type": kind, "status": "True", "lastTransitionTime": since}])
    return found | changes


def placed(adapter: Adapter, one: dict[str, Any]) -> None:
    """The API server has it; no watch has told."""
    adapter.double.add(f"{PODS}/{one['metadata']['name']}", one)


def phases(adapter: Adapter) -> list[str]:
    return sorted(one["status"]["phase"] for one in adapter.cluster.observe(KEY).children.pods)


def test_pods_that_are_behind_their_failed_job_are_read_before_it_is_judged(adapter: Adapter) -> None:
    of = over("Failed")
    adapter.store.put(of)
    adapter.store.put(pod(of, 0))
    adapter.store.put(pod(of, 1))
    ended = {"exitCode": 70, "reason": "OOMKilled", "finishedAt": "2026-01-31T12:01:00Z"}
    placed(adapter, pod(of, 0, phase="Failed", ended=ended))  # its peer is gone
    world = adapter.cluster.observe(KEY)
    (state,) = all_states(world.children, world.now)
    assert (state.phase, state.cause) == (RunPhase.FAILED, "OutOfMemory")
    assert phases(adapter) == ["Failed"]
    (request,) = adapter.double.sent("GET .*/pods$")
    labels = of["metadata"]["labels"]
    assert request.query["labelSelector"] == (
        f"dapt.dev/uid={labels['dapt.dev/uid']},dapt.dev/run={labels['dapt.dev/run']}"
    )


def test_pods_that_were_never_seen_are_read_when_their_job_has_just_ended(adapter: Adapter) -> None:
    of = over("Complete")
    adapter.store.put(of)
    for index in range(2):
        placed(adapter, pod(of, index, phase="Succeeded", ended={"exitCode": 0}))
    assert phases(adapter) == ["Succeeded", "Succeeded"]
    assert len(adapter.double.sent("GET .*/pods$")) == 1


def test_pods_of_an_ended_job_are_listed_only_once(adapter: Adapter) -> None:
    of = over("Failed")
    adapter.store.put(of)
    assert phases(adapter) == []
    assert phases(adapter) == []
    assert len(adapter.double.sent("GET .*/pods$")) == 1


def test_a_job_that_ended_long_ago_may_have_lost_its_pods(adapter: Adapter) -> None:
    adapter.store.put(over("Complete", seconds_ago=3600))
    assert phases(adapter) == []
    assert adapter.double.requests == []


def test_a_run_whose_pods_are_all_known_costs_no_request(adapter: Adapter) -> None:
    of = over("Complete")
    adapter.store.put(of)
    for index in range(2):
        adapter.store.put(pod(of, index, phase="Succeeded", ended={"exitCode": 0}))
    assert phases(adapter) == ["Succeeded", "Succeeded"]
    assert adapter.double.requests == []


def test_other_runs_are_left_alone(adapter: Adapter) -> None:
    other = job(uid="job-2", run=stage_run(nodes=2, try_number=2, fence=2))
    adapter.store.put(other)
    adapter.store.put(pod(other, 0))
    of = over("Failed")
    adapter.store.put(of)
    adapter.store.put(pod(of, 0))
    assert phases(adapter) == ["Running"], "the other run's"


def test_what_cannot_be_read_is_not_judged(adapter: Adapter) -> None:
    of = over("Complete")
    adapter.store.put(of)
    adapter.double.odd("GET .*/pods$", *[Odd(503)] * 4)
    with pytest.raises(ApiError, match="503"):
        adapter.cluster.observe(KEY)
    assert phases(adapter) == [], "the next look reads it"
