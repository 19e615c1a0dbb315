"""The test cluster itself: what stands on it must be able to trust it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3

from dapt_operator.testing.objects import Ends
from testcluster import leftovers
from testcluster.api import ApiError
from testcluster.control_plane import ROOT, ControlPlane, load_manifests
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.pod_life import Answer, Life
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


def test_the_crds_are_established_and_their_schemas_have_no_errors(control_plane: ControlPlane) -> None:
    for name in ("domainadaptations.dapt.dev", "adaptationprofiles.dapt.dev"):
        status = control_plane.api.get("CustomResourceDefinition", name)["status"]
        conditions = {item["type"]: item["status"] for item in status["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}  # and no NonStructuralSchema


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_accepted_unless_it_reads_files_of_a_laptop(
    control_plane: ControlPlane, namespace: str, path: Path
) -> None:
    for manifest in load_manifests(path):
        manifest["metadata"].pop("namespace", None)  # the test's own
        if "file://" in json.dumps(manifest):
            with pytest.raises(ApiError, match="the cluster's pods cannot read a file of your machine"):
                control_plane.api.apply(manifest, namespace, dry_run=True)
            continue
        stored = control_plane.api.apply(manifest, namespace, dry_run=True)
        assert stored["spec"].keys() >= manifest["spec"].keys()  # nothing was pruned


def test_a_field_that_the_schema_does_not_know_is_refused(
    control_plane: ControlPlane, namespace: str
) -> None:
    [manifest] = load_manifests(ROOT / "examples" / "legal.yaml")
    manifest["spec"]["pretraining"]["learningrate"] = 1e-4
    with pytest.raises(ApiError, match=r"\.spec\.pretraining\.learningrate: field not declared in schema"):
        control_plane.api.apply(manifest, namespace, dry_run=True)


def test_deleted_pod_ends_as_scripted_and_is_removed(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    control_plane.api.create(job_of_two(), namespace)
    eventually(lambda: kubelet.started_pods == 2)
    control_plane.api.delete("Job", "gang", namespace, propagation="Foreground")
    eventually(lambda: control_plane.api.list("Pod", namespace) == [])
    eventually(lambda: control_plane.api.find("Job", "gang", namespace) is None)


def test_a_pod_waits_for_the_secret_that_it_refers_to(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    job = job_of_two()
    job["spec"]["template"]["spec"]["containers"][0]["envFrom"] = [{"secretRef": {"name": "hub"}}]
    control_plane.api.create(job, namespace)

    def waiting() -> list[dict[str, str]]:
        statuses = [pod["status"] for pod in control_plane.api.list("Pod", namespace)]
        return [
            item["state"]["waiting"] for status in statuses for item in status.get("containerStatuses", [])
        ]

    refused = {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}
    eventually(lambda: waiting() == [refused, refused])
    assert kubelet.started_pods == 0
    control_plane.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}}, namespace)
    eventually(lambda: kubelet.started_pods == 2)


def test_a_container_that_cannot_start_waits_until_its_script_changes(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = lambda pod: Life(waiting=("ErrImagePull", "no such image"))
    control_plane.api.create(job_of_two(), namespace)
    fields = "status.phase=Pending"
    eventually(
        lambda: (
            [
                pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                for pod in control_plane.api.list("Pod", namespace, fields=fields)
            ]
            == ["ErrImagePull", "ErrImagePull"]
        )
    )
    kubelet.script = lambda pod: Life(then=Ends())
    eventually(lambda: "Complete" in conditions(control_plane, namespace))


def test_a_claim_of_the_default_class_is_bound(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "work"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    control_plane.api.create(claim, namespace)
    found = eventually(
        lambda: [
            item
            for item in control_plane.api.list("PersistentVolumeClaim", namespace)
            if item["status"]["phase"] == "Bound"
        ]
    )
    assert found[0]["status"]["capacity"] == {"storage": "1Gi"}


def test_progress_and_logs_are_answered_as_a_pod_would(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = lambda pod: Life(progress=Answer(b'{"step": 7}'), log="first\nsecond\nthird\n")
    job = job_of_two()
    job["spec"]["template"]["spec"]["containers"][0]["ports"] = [{"name": "progress", "containerPort": 9500}]
    control_plane.api.create(job, namespace)
    eventually(lambda: kubelet.started_pods == 2)
    pods = eventually(lambda: control_plane.api.list("Pod", namespace, fields="status.phase=Running"))
    answers = {pod["status"]["podIP"]: _progress(pod) for pod in pods}
    assert list(answers.values()) == [b'{"step": 7}'] * len(answers)
    path = control_plane.api.path("Pod", namespace, pods[0]["metadata"]["name"])
    assert control_plane.api.request("GET", f"{path}/log", tailLines=2) == "second\nthird\n"


def test_pods_have_loopback_addresses_where_no_others_can_be_had(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "route", lambda verb, network: False)
    job = job_of_two()
    job["spec"]["template"]["spec"]["containers"][0]["ports"] = [{"name": "progress", "containerPort": 9500}]
    with ScriptedKubelet(control_plane, lambda pod: Life(progress=Answer(b"{}"))) as kubelet:
        control_plane.api.create(job, namespace)
        eventually(lambda: kubelet.started_pods == 2)
        pods = control_plane.api.list("Pod", namespace)
        assert {pod["status"]["podIP"].partition(".")[0] for pod in pods} == {"127"}
        assert [_progress(pod) for pod in pods] == [b"{}", b"{}"]


@pytest.mark.parametrize(
    ("grace_seconds", "exit_code", "message"),
    [(5, 143, "saved"), (1, 137, None)],
    ids=["in time", "too slow"],
)
def test_stopping_pod_gets_its_grace_period_and_no_more(
    control_plane: ControlPlane,
    namespace: str,
    kubelet: ScriptedKubelet,
    grace_seconds: int,
    exit_code: int,
    message: str | None,
) -> None:
    kubelet.script = lambda pod: Life(on_stop=Ends(exit_code=143, message="saved"), stop_seconds=1.5)
    pod = job_of_two()["spec"]["template"] | {"apiVersion": "v1", "kind": "Pod"}
    # The finalizer keeps the object, and with it the last words, as the Job controller does.
    pod["metadata"] = {"name": "alone", "finalizers": ["tests.dapt.dev/keep"]}
    control_plane.api.create(pod, namespace)
    eventually(lambda: kubelet.started_pods == 1)
    control_plane.api.delete("Pod", "alone", namespace, grace_seconds=grace_seconds)
    status = eventually(
        lambda: [
            item["status"]
            for item in control_plane.api.list("Pod", namespace)
            if item["status"]["phase"] == "Failed"
        ]
    )[0]
    ended = status["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended.get("message")) == (exit_code, message)
    control_plane.api.patch("Pod", "alone", {"metadata": {"finalizers": None}}, namespace)


def test_frozen_pod_reports_no_status(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    control_plane.api.create(job_of_two(), namespace)
    eventually(lambda: kubelet.started_pods == 2)
    assert kubelet.freeze(lambda pod: pod.index == 1) == 1
    control_plane.api.delete("Job", "gang", namespace)

    def one_left() -> list[dict[str, Any]]:
        pods = control_plane.api.list("Pod", namespace)
        return pods if len(pods) == 1 else []

    left = eventually(one_left)
    assert left[0]["status"]["phase"] == "Running"
    assert left[0]["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "1"


def test_a_drained_pod_is_a_disruption(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    control_plane.api.create(job_of_two(), namespace)
    eventually(lambda: kubelet.started_pods == 2)
    name = control_plane.api.list("Pod", namespace)[0]["metadata"]["name"]
    path = control_plane.api.path("Pod", namespace, name)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    control_plane.api.request("POST", f"{path}/eviction", eviction)
    eventually(lambda: "Failed" in conditions(control_plane, namespace))


def _progress(pod: dict[str, Any]) -> bytes:
    address = f"http://{pod['status']['podIP']}:9500/progress"
    with urllib3.PoolManager() as pool:
        return pool.request("GET", address, timeout=5, retries=False).data


def test_five_hundred_gangs_run_at_once(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: control_plane.api.create(job_of_two(f"gang-{n}"), namespace), range(500)))
    eventually(lambda: kubelet.started_pods == 1000, "1,000 running pods", seconds=240)


def test_requests_are_counted_by_who_sent_them(control_plane: ControlPlane, namespace: str) -> None:
    mark = control_plane.audit.mark()
    map_ = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "counted"}}
    control_plane.api.create(map_, namespace)
    control_plane.api.get("ConfigMap", "counted", namespace)
    control_plane.api.get("ConfigMap", "counted", namespace)
    counted = control_plane.audit.count(mark, lambda request: request.name == "counted")
    assert counted == {
        ("dapt-tests", "create", "configmaps"): 1,
        ("dapt-tests", "get", "configmaps"): 2,
    }


def test_a_service_account_may_do_what_it_was_granted_and_nothing_more(
    control_plane: ControlPlane, namespace: str
) -> None:
    kubeconfig = control_plane.kubeconfig_for(namespace, "default")
    done = subprocess.run(
        ["kubectl", "--kubeconfig", kubeconfig, "get", "configmaps"],
        capture_output=True,
        text=True,
        check=False,
    )
    who = f"system:serviceaccount:{namespace}:default"
    assert done.returncode == 1
    assert f'User "{who}" cannot list resource "configmaps"' in done.stderr


def test_a_killed_test_run_leaves_no_process_behind_and_its_folder_goes_with_the_next(tmp_path: Path) -> None:
    program = (
        "import time\n"
        "from testcluster.control_plane import ControlPlane\n"
        "from testcluster.kubelet_script import ScriptedKubelet\n"
        "with ControlPlane() as plane, ScriptedKubelet(plane) as kubelet:\n"
        "    pids = [process.pid for process in plane.processes]\n"
        "    print(*pids, kubelet.network, plane.folder, flush=True)\n"
        "    time.sleep(300)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "tests")])
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        *pids, network, folder = run.stdout.readline().split()
        assert len(pids) == 4
        assert all(psutil.pid_exists(int(pid)) for pid in pids)
        run.send_signal(signal.SIGKILL)
    eventually(lambda: not any(_runs(int(pid)) for pid in pids), "the end of its children")
    assert Path(folder).exists()
    leaf = f"|-- {network.partition('/')[0]}\n"
    assert leaf in Path("/proc/net/fib_trie").read_text() or network.startswith("127.")
    sweep = "from testcluster import leftovers; leftovers.sweep()"
    subprocess.run([sys.executable, "-c", sweep], env=environment, check=True)
    assert not Path(folder).exists()
    assert leaf not in Path("/proc/net/fib_trie").read_text()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
