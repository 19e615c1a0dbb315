"""The test cluster itself: what stands on it must be able to trust it."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_operator.cluster.memory import Ends
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.pod_life import Life
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster


def job_of_two(name: str = "gang") -> dict[str, Any]:
    """An Indexed Job of two pods as ours are: one failure ends it."""
    container = {"name": "trainer", "image": "registry.example/none"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": 2,
            "parallelism": 2,
            "backoffLimit": 0,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


def conditions(control_plane: ControlPlane, namespace: str, name: str = "gang") -> dict[str, str]:
    """The Job's true conditions with their reasons."""
    status = control_plane.api.get("Job", name, namespace).get("status") or {}
    return {
        item["type"]: item.get("reason", "")
        for item in status.get("conditions") or []
        if item["status"] == "True"
    }


def test_a_job_of_two_pods_completes_by_the_script(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = lambda pod: Ends(message=f"rank {pod.index}")
    control_plane.api.create(job_of_two(), namespace)
    eventually(lambda: "Complete" in conditions(control_plane, namespace))
    pods = control_plane.api.list("Pod", namespace)
    ended = {
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]: pod["status"]["phase"]
        for pod in pods
    }
    assert ended == {"rank 0": "Succeeded", "rank 1": "Succeeded"}


def test_a_pod_out_of_memory_fails_its_job(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = lambda pod: Ends(oom_killed=True, lose_message=True) if pod.index else Life()
    control_plane.api.create(job_of_two(), namespace)
    eventually(lambda: conditions(control_plane, namespace).get("Failed") == "BackoffLimitExceeded")
    failed = control_plane.api.list("Pod", namespace, fields="status.phase=Failed")
    killed = [
        pod["status"]["containerStatuses"][0]["state"]["terminated"]
        for pod in failed
        if pod["metadata"]["name"].startswith("gang-1-")
    ]
    assert [(item["exitCode"], item["reason"]) for item in killed] == [(137, "OOMKilled")]


def test_five_hundred_gangs_run_at_once(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: control_plane.api.create(job_of_two(f"gang-{n}"), namespace), range(500)))
    eventually(lambda: kubelet.started_pods == 1000, "1,000 running pods", seconds=120)
