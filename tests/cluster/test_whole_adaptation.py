"""Tests whole adaptations on a real control plane: what a user sees, and what the operator survives."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from dapt_contract.pod.progress import Progress
from dapt_operator.testing.objects import Ends
from testcluster.adaptations import (
    STAGES,
    Adaptation,
    ends_well,
    healthy,
    make_claim,
    make_profile,
    stays_in,
)
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.pod_life import Answer, Life, ScriptedPod
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

OURS = "dapt-operator"
Start = Callable[..., OperatorProcess]


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str) -> str:
    """The test's namespace, with a work volume."""
    make_claim(control_plane, namespace)
    return namespace


@pytest.fixture
def profile(control_plane: ControlPlane) -> str:
    return make_profile(control_plane)


@pytest.fixture
def start(control_plane: ControlPlane, place: str) -> Iterator[Start]:
    """Starts an operator for the test's namespace; all are killed at the end."""
    with ExitStack() as stack:

        def make(pod: str = "pod-0", *flags: str) -> OperatorProcess:
            return stack.enter_context(OperatorProcess(control_plane, [place], pod=pod, flags=flags))

        yield make


def created_jobs(plane: ControlPlane, namespace: str, since: int) -> list[str]:
    """Names of Jobs in the order in which our POSTs made them."""
    return [
        request.path
        for request in plane.audit.requests(since)
        if (request.agent, request.verb, request.resource) == (OURS, "create", "batch/jobs")
        and request.namespace == namespace
        and request.code == 201
    ]


def ends_published(adaptation: Adaptation, plane: ControlPlane, since: int) -> None:
    """The one good end: every stage once, and never two Jobs for one run."""
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]
    names = [job["metadata"]["name"] for job in adaptation.jobs()]
    assert len(names) == len(set(names)) == len(STAGES)
    assert len(created_jobs(plane, adaptation.namespace, since)) == len(STAGES)


def test_adaptation_runs_from_manifest_to_published_model(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    kubelet.script = healthy
    since = control_plane.audit.mark()
    start()
    adaptation = Adaptation(control_plane, place, profile)
    ends_published(adaptation, control_plane, since)

    (gang,) = adaptation.jobs("pretrain")
    assert (gang["spec"]["completions"], gang["spec"]["parallelism"]) == (2, 2)
    assert {job["spec"]["completions"] for job in adaptation.jobs("evaluate")} == {1}
    true = {one["type"] for one in adaptation.status["conditions"] if one["status"] == "True"}
    assert true == {"Accepted", "Ready", "GatesPassed", "Finished"}
    assert adaptation.condition("Finished")["reason"] == "Published"
    assert adaptation.status["output"]["destination"] == "s3://out/model"
    assert len(adaptation.children("Secret")) == len(adaptation.children("Service")) == 1

    shown = kubectl(control_plane, "get", "da", "-n", place).splitlines()
    assert shown[0].split()[:6] == ["NAME", "READY", "PHASE", "REASON", "STAGE", "PROGRESS"]
    assert shown[1].split()[:5] == ["clinical", "True", "Published", "Published", "publish"]
    events = {
        (event["reason"], event["involvedObject"]["kind"])
        for event in control_plane.api.list("Event", place)
        if event["source"].get("component") == "dapt"
    }
    assert events == {
        (reason, "DomainAdaptation")
        for reason in ("StageStarted", "StageSucceeded", "CandidateSelected", "Published")
    }


def test_progress_of_the_first_pod_reaches_the_status_and_the_metrics(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    def trains(pod: ScriptedPod) -> Life:
        if pod.stage is None or pod.stage.kind != "pretrain":
            return healthy(pod)
        reading = Progress(
            run_key=pod.stage.run.key,
            stage="pretrain",
            fraction=0.25,
            step=10,
            total_steps=40,
            tokens=10_240,
            tokens_per_second=512.0,
            eta_seconds=60.0,
        )
        return Life(progress=reading if pod.index == 0 else Answer(b"not the first pod's", status=500))

    kubelet.script = trains
    operator = start()
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait(lambda one: one.status.get("progress"), "a reading in the status")
    assert adaptation.status["progress"] == {
        "fraction": 0.25,
        "step": 10,
        "totalSteps": 40,
        "tokens": 10_240,
        "tokensPerSecond": 512.0,
        "etaSeconds": 60.0,
    }
    ready, phase, _, stage, *progress = (
        kubectl(control_plane, "get", "da", "-n", place).splitlines()[1].split()[1:7]
    )
    assert (ready, phase, progress) == ("False", "Pretraining", ["0.25", "60"])
    assert stage in ("pretrain", "evaluate")  # whichever was started last
    samples = operator.get("/metrics").splitlines()
    of = f'name="clinical",namespace="{place}"'
    assert f"dapt_progress_ratio{{{of}}} 0.25" in samples
    assert f"dapt_tokens_total{{{of}}} 10240.0" in samples
    control_plane.api.delete("DomainAdaptation", "clinical", place)
    eventually(lambda: of not in operator.get("/metrics"), "the end of its series")


def kubectl(plane: ControlPlane, *arguments: str) -> str:
    done = subprocess.run(
        ["kubectl", f"--kubeconfig={plane.kubeconfig}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_operator_writes_no_more_than_it_must(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    kubelet.script = healthy
    since = control_plane.audit.mark()
    start()
    adaptation = Adaptation(control_plane, place, profile, cleanup={"finishedRuns": "Delete"})
    adaptation.wait_for_phase("Published")
    eventually(lambda: adaptation.jobs() == [] == adaptation.children("ConfigMap"), "the last run's deletion")

    everything = [adaptation.resource]
    for kind in ("Job", "Pod", "ConfigMap", "Service", "Secret"):
        everything += adaptation.children(kind)
    for item in everything:
        metadata = item["metadata"]
        assert not [name for name in metadata.get("finalizers", ()) if "kopf" in name or "dapt" in name]
        assert not [name for name in metadata.get("annotations", ()) if "kopf" in name]
    assert "finalizers" not in adaptation.resource["metadata"]

    requests = list(control_plane.audit.requests(since))
    assert {one.verb for one in requests if one.agent == "kopf"} <= {"get", "list", "watch"}
    writes = control_plane.audit.count(
        since,
        where=lambda one: one.agent == OURS and one.is_write and one.namespace == place,
        by=lambda one: f"{one.verb} {one.resource}",
    )
    # A stage: its ConfigMap, its Job, two writes of the status and one Event. The first also makes the Service and the
    # Secret, the choice of the candidate and the end are one Event more. So is the start of pretraining, before which
    # the chosen replay is stored. A slow scheduler's reason is one more write.
    # The ConfigMap and the Job of each run are deleted once.
    # Whether the Secret still exists is asked before each stage that signs what it writes, and before the first, by a
    # dry run of its creation; the digest of its key is in the status that has the first run.
    stages = len(STAGES)
    status_writes = writes.pop("update dapt.dev/domainadaptations/status")
    assert 2 * stages <= status_writes <= 3 * stages + 1
    assert writes == {
        "create configmaps": stages,
        "create batch/jobs": stages,
        "create secrets": 2 + len(set(STAGES) - {"destination", "prepare", "publish"}),
        "patch services": 1,
        "create events": stages + 3,
        "delete configmaps": stages,
        "delete batch/jobs": stages,
    }


def test_killed_in_the_middle_and_started_again_it_ends_the_same(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    kubelet.script = stays_in("pretrain")
    since = control_plane.audit.mark()
    operator = start()
    adaptation = Adaptation(control_plane, place, profile)
    before = adaptation.wait_for_run("pretrain", pods=2)
    operator.kill()
    kubelet.script = healthy  # pretraining ends while nobody looks
    eventually(lambda: not kubelet.pods, "the end of pretraining")
    operator.start()
    ends_published(adaptation, control_plane, since)
    after = {pod["metadata"]["uid"] for pod in adaptation.children("Pod")}
    assert {pod["metadata"]["uid"] for pod in before} <= after


def test_an_upgrade_restarts_no_pod(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    kubelet.script = stays_in("pretrain")
    since = control_plane.audit.mark()
    old = start("pod-old")
    adaptation = Adaptation(control_plane, place, profile)
    before = {pod["metadata"]["uid"] for pod in adaptation.wait_for_run("pretrain", pods=2)}
    assert old.terminate() == 0
    new = start("pod-new")
    new.wait_for("acting")
    new.wait_for("reconciled")
    assert {pod["metadata"]["uid"] for pod in adaptation.running("pretrain")} == before
    kubelet.script = healthy
    ends_published(adaptation, control_plane, since)


def test_sigterm_ends_it_in_order_and_the_lease_is_free(
    control_plane: ControlPlane, place: str, start: Start
) -> None:
    operator = start()
    operator.wait_for("acting")
    lease = control_plane.api.get("Lease", "dapt", place, api_version="coordination.k8s.io/v1")
    assert lease["spec"]["holderIdentity"].endswith("_pod-0")
    assert operator.terminate(seconds=5) == 0
    assert operator.lines("stopped")[-1]["finished"] is True
    lease = control_plane.api.get("Lease", "dapt", place, api_version="coordination.k8s.io/v1")
    assert not lease["spec"].get("holderIdentity")


def test_of_two_operators_one_acts_and_the_other_takes_over(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    kubelet.script = stays_in("baseline")
    since = control_plane.audit.mark()
    first = start("pod-1")
    first.wait_for("acting")
    second = start("pod-2")
    second.wait_for("waiting for the Lease: another operator acts")
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait_for_run("baseline")
    assert second.get("/readyz") == "ok\n"
    assert second.lines("reconciled") == []
    first.kill()
    kubelet.script = healthy
    ends_published(adaptation, control_plane, since)
    assert second.lines("reconciled") != []


def test_a_finished_adaptation_stays_finished_when_its_jobs_are_gone(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    kubelet.script = healthy
    operator = start()
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait_for_phase("Published")
    before = adaptation.status
    for job in adaptation.jobs():
        control_plane.api.delete("Job", job["metadata"]["name"], place)
    eventually(lambda: adaptation.jobs() == [] == adaptation.children("Pod"), "Jobs and pods gone")
    since = control_plane.audit.mark()
    operator.kill()
    operator.start()
    operator.wait_for("acting", count=2)
    seen = len(operator.lines("reconciled"))
    control_plane.api.patch("DomainAdaptation", "clinical", {"metadata": {"labels": {"a": "b"}}}, place)
    operator.wait_for("reconciled", count=seen + 1)
    assert adaptation.status == before
    assert created_jobs(control_plane, place, since) == []


def test_deleting_works_while_the_operator_is_down(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    kubelet.script = stays_in("pretrain")
    operator = start()
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait_for_run("pretrain", pods=2)
    operator.kill()
    control_plane.api.delete("DomainAdaptation", "clinical", place)

    def left() -> dict[str, int]:
        kinds = ("Job", "Pod", "ConfigMap", "Service", "Secret")
        return {kind: len(found) for kind in kinds if (found := adaptation.children(kind))}

    eventually(lambda: left() == {}, "the end of all children", seconds=60)
    assert control_plane.api.find("DomainAdaptation", "clinical", place) is None


def test_deleted_in_each_phase_it_leaves_nothing(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    def stays(pod: ScriptedPod) -> Life:
        return Life() if pod.stage is not None and pod.stage.run.name == pod.stage.run.stage else healthy(pod)

    kubelet.script = stays
    operator = start()
    lives = [Adaptation(control_plane, place, profile, stage) for stage in STAGES]
    for life in lives:
        life.wait_for_run(life.name, pods=2 if life.name == "pretrain" else 1)
    for life in lives:
        control_plane.api.delete("DomainAdaptation", life.name, place)
    kinds = ("Job", "Pod", "ConfigMap", "Service", "Secret")
    for life in lives:
        eventually(
            partial(lambda life: not any(map(life.children, kinds)), life),
            f"the end of {life.name}",
            seconds=60,
        )
    assert [line for line in operator.lines() if line.get("level") == "error"] == []


def test_suspended_in_each_phase_and_resumed_it_loses_nothing(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, start: Start
) -> None:
    kubelet.script = stays_in(*STAGES)
    start()
    adaptation = Adaptation(control_plane, place, profile)
    for stage in STAGES:
        pods = 2 if stage == "pretrain" else 1
        adaptation.wait_for_run(stage, pods)
        adaptation.patch(suspend=True)
        adaptation.wait_for_phase("Suspended")
        adaptation.wait(partial(lambda stage, one: not one.running(stage), stage), f"no pod of {stage}")
        assert adaptation.condition("Suspended")["status"] == "True"
        adaptation.patch(suspend=False)
        # The status may still tell of the first try's last moments.
        adaptation.wait(
            partial(lambda stage, one: one.runs()[-1] == (stage, 2), stage), f"a second try of {stage}"
        )
        adaptation.wait_for_run(stage, pods)
        kubelet.change(end_of(kubelet, stage))
    adaptation.wait_for_phase("Published")
    assert adaptation.status["usage"]["restarts"] == 0


def end_of(kubelet: ScriptedKubelet, stage: str) -> Ends:
    (first, *_) = (pod for pod in kubelet.pods if pod.stage is not None and pod.stage.run.stage == stage)
    assert first.stage is not None
    return ends_well(first.stage)
