"""Tests Jobs that share one machine: a Job beyond the capacity waits and reports what it waits for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dapt_operator.cluster.local import LocalCluster
from dapt_operator.cluster.local import cluster as cluster_module
from dapt_operator.cluster.local.processes.capacity import Capacity, job_request, machine_capacity
from dapt_operator.cluster.port import ObjectReference
from dapt_operator.launchers.indexed_job import states
from dapt_operator.stage_run import RunPhase, RunState
from support.launch_builders import fake_manifests, resource, stage_run
from support.local_runs import owner_of
from support.pod_objects import wait_until

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    machine = Capacity({"cpu": 4.0, "nvidia.com/gpu": 2.0})
    monkeypatch.setattr(cluster_module, "machine_capacity", lambda accelerators: machine)
    with LocalCluster(tmp_path / "run", resource(), None) as local:
        yield local
        local.kill()


def start(cluster: LocalCluster, program: str, try_number: int, **requests: str) -> str:
    """Apply a run whose only pod executes a line of Python and asks for so much."""
    of = owner_of(cluster)
    run = stage_run("done", of=of, try_number=try_number, fence=try_number)
    manifests = fake_manifests(run, of, terminationGracePeriodSeconds=5)
    container: dict[str, Any] = manifests[-1]["spec"]["template"]["spec"]["containers"][0]
    container["command"], container["args"] = ["python", "-c", program], []
    container["resources"] = {"requests": requests} if requests else {}
    for manifest in manifests:
        cluster.apply(cluster.key, manifest)
    return run.name


def state_of(cluster: LocalCluster, name: str) -> RunState:
    world = cluster.observe(cluster.key)
    return next(state for state in states(world.children, world.now) if state.object_name == name)


def phases(cluster: LocalCluster, *names: str) -> list[str]:
    return [state_of(cluster, name).phase.value for name in names]


def test_what_fits_runs_side_by_side_and_what_does_not_waits_with_a_reason(cluster: LocalCluster) -> None:
    first, second, third = (start(cluster, SLEEP, number, cpu="2") for number in (1, 2, 3))
    assert phases(cluster, first, second, third) == ["Running", "Running", "Pending"]
    assert state_of(cluster, third).message == (
        "Unschedulable: 4 of 4 cpu are in use on this machine and 2 are requested"
    )
    cluster.delete(cluster.key, ObjectReference("Job", first))
    wait_until(lambda: phases(cluster, third) == ["Running"], "room for the third")


def test_a_pod_without_a_request_uses_the_whole_machine(cluster: LocalCluster) -> None:
    first = start(cluster, "import time; time.sleep(0.2)", 1)
    second = start(cluster, "pass", 2, cpu="500m")
    assert phases(cluster, second) == ["Pending"]
    wait_until(lambda: not any(state_of(cluster, name).is_live for name in (first, second)), "both ends")
    before, after = state_of(cluster, first), state_of(cluster, second)
    assert before.completed is not None
    assert after.started is not None
    assert before.completed <= after.started


def test_a_job_that_is_larger_than_the_machine_starts_when_nothing_else_runs(cluster: LocalCluster) -> None:
    first = start(cluster, SLEEP, 1, cpu="1")
    large = start(cluster, SLEEP, 2, cpu="64")
    assert phases(cluster, first, large) == ["Running", "Pending"]
    cluster.delete(cluster.key, ObjectReference("Job", first))
    wait_until(lambda: phases(cluster, large) == ["Running"], "the large one")


def test_a_waiting_job_can_be_taken_away(cluster: LocalCluster) -> None:
    start(cluster, SLEEP, 1)
    second = start(cluster, SLEEP, 2)
    assert phases(cluster, second) == ["Pending"]
    cluster.delete(cluster.key, ObjectReference("Job", second))
    world = cluster.observe(cluster.key)
    assert [run.phase for run in states(world.children, world.now)] == [RunPhase.RUNNING]


def test_gangs_with_accelerators_are_bounded_by_those_alone(cluster: LocalCluster) -> None:
    first, second = (start(cluster, SLEEP, n, cpu="4", **{"nvidia.com/gpu": "1"}) for n in (1, 2))
    third = start(cluster, SLEEP, 3, **{"nvidia.com/gpu": "1"})
    assert phases(cluster, first, second, third) == ["Running", "Running", "Pending"]
    assert state_of(cluster, third).message == (
        "Unschedulable: 2 of 2 nvidia.com/gpu are in use on this machine and 1 are requested"
    )


def test_all_pods_of_a_gang_count() -> None:
    run = stage_run("done", nodes=3)
    job = fake_manifests(run)[-1]
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["resources"] = {"requests": {"cpu": "1500m", "memory": "1Gi"}}
    assert job_request(job, Capacity({"cpu": 8.0})) == Capacity({"cpu": 4.5})
    container["resources"] = {}
    assert job_request(job, Capacity({"cpu": 8.0})) == Capacity({"cpu": 8.0})
    assert machine_capacity({"nvidia.com/gpu": 2}).amounts["nvidia.com/gpu"] == 2.0
