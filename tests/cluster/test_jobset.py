"""JobSet instead of an Indexed Job, with the real JobSet controller: another object, the same adaptation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.testing.objects import Ends
from testcluster.adaptations import STAGES, Adaptation, healthy, make_claim, make_profile, stays_in
from testcluster.control_plane import ControlPlane
from testcluster.controllers import lacking
from testcluster.jobset import API_VERSION, jobset
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.pod_life import Life, ScriptedPod
from testcluster.release import Release
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

TIMES = frozenset(
    {"startTime", "completionTime", "lastTransitionTime", "progressTime", "created", "started", "completed"}
    | {"acceleratorSeconds", "heldSeconds", "gpuHours", "goodput"}
)
"""When things happened, and how long they took."""
IDENTITIES = frozenset(
    {
        "runKey",
        "profile",
        "profileDigest",
        "config",
        "configDigest",
        "shared",
        "made",
        "objectUid",
        "childUid",
        "signingKeys",
    }
)
"""Names of the resource, its profile and its objects, digests that contain them, and keys of its own."""


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """One of its own: elsewhere there is no JobSet."""
    why = lacking("jobset")
    if why:
        pytest.skip(why)
    with ControlPlane() as plane, jobset(plane):
        plane.install_crds()
        yield plane


@pytest.fixture(scope="module")
def release(control_plane: ControlPlane) -> Iterator[Release]:
    """The operator for the whole cluster, with what the chart grants and no more."""
    with pytest.MonkeyPatch.context() as patch, Release(control_plane) as made:
        patch.setenv("POD_UID", "pod-0")  # started again in its pod, it goes on with its Lease
        made.install({"crds": {"install": False}, "features": {"jobSet": True}})
        made.run_operator()
        yield made


@pytest.fixture
def place(control_plane: ControlPlane, release: Release, namespace: str) -> str:
    """The test's namespace, with a work volume."""
    make_claim(control_plane, namespace)
    return namespace


@pytest.fixture
def profile(control_plane: ControlPlane) -> str:
    return make_profile(control_plane, launcher="JobSet")


def job_sets(adaptation: Adaptation, stage: str) -> list[dict[str, Any]]:
    """Of a stage, oldest first."""
    labels = f"dapt.dev/uid={adaptation.uid},dapt.dev/stage={stage}"
    found = adaptation.plane.api.list("JobSet", adaptation.namespace, labels=labels, api_version=API_VERSION)
    return sorted(found, key=lambda item: int(item["metadata"]["labels"]["dapt.dev/fence"]))


def lasting(value: Any) -> Any:
    """A status without times and identities."""
    if isinstance(value, dict):
        return {name: lasting(item) for name, item in value.items() if name not in TIMES | IDENTITIES}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def test_jobset_adaptation_ends_with_the_same_status_as_indexed_jobs(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    with_job_sets = Adaptation(control_plane, place, profile, name="sets")
    with_jobs = Adaptation(control_plane, place, make_profile(control_plane), name="jobs")
    for adaptation in (with_job_sets, with_jobs):
        adaptation.wait_for_phase("Published")
    for stage in STAGES:
        assert len(job_sets(with_job_sets, stage)) == 1
        assert job_sets(with_jobs, stage) == []
    assert lasting(with_job_sets.status) == lasting(with_jobs.status)


def test_the_gang_finds_its_first_pod_by_the_name_that_jobset_gives_it(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = stays_in("pretrain")
    adaptation = Adaptation(control_plane, place, profile)
    pods = {
        pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]: pod
        for pod in adaptation.wait_for_run("pretrain", pods=2)
    }
    assert set(pods) == {"0", "1"}
    for index, pod in pods.items():
        container = next(item for item in pod["spec"]["containers"] if item["name"] == "trainer")
        told = {item["name"]: item.get("value") for item in container["env"]}
        first = pods["0"]["spec"]
        assert told["PET_MASTER_ADDR"] == f"{first['hostname']}.{first['subdomain']}"
        assert told["PET_NNODES"] == "2"
        assert pod["spec"]["hostname"].endswith(f"-{index}")
    service = control_plane.api.get("Service", pods["0"]["spec"]["subdomain"], place)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    selected = service["spec"]["selector"].items()
    assert all(selected <= pod["metadata"]["labels"].items() for pod in pods.values())
    assert adaptation.children("Service") == []


def test_lost_rank_starts_a_new_run_of_the_gang(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet
) -> None:
    lost = Ends(ExitCode.INFRASTRUCTURE, cause=Cause.INFRASTRUCTURE, message="the network is gone")

    def loses_a_rank_once(pod: ScriptedPod) -> Life:
        if pod.stage is None or pod.stage.kind != "pretrain" or pod.stage.run.try_number > 1:
            return healthy(pod)
        return Life(then=lost, run_seconds=0.5, log="NCCL WARN connection closed\n") if pod.index else Life()

    kubelet.script = loses_a_rank_once
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 2 if stage == "pretrain" else 1) for stage in STAGES]
    assert adaptation.status["usage"]["restarts"] == 1


def test_out_of_memory_is_tried_again_with_half_the_micro_batch(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet
) -> None:
    micro_batches: list[int] = []

    def too_large_once(pod: ScriptedPod) -> Life:
        if pod.stage is None or pod.stage.kind != "pretrain" or pod.index:
            return healthy(pod)
        assert isinstance(pod.stage.config, PretrainConfig)
        micro_batches.append(pod.stage.config.micro_batch_size)
        return (
            Life(then=Ends(oom_killed=True, lose_message=True)) if len(micro_batches) == 1 else healthy(pod)
        )

    kubelet.script = too_large_once
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait_for_phase("Published")
    assert micro_batches == [2, 1]


def test_suspended_jobset_deletes_its_pods_and_resumes(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = stays_in("pretrain")
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait_for_run("pretrain", pods=2)
    adaptation.patch(suspend=True)
    adaptation.wait_for_phase("Suspended")
    eventually(lambda: job_sets(adaptation, "pretrain") == [], "the JobSet gone")
    eventually(lambda: not adaptation.running("pretrain"), "its pods gone")
    kubelet.script = healthy
    adaptation.patch(suspend=False)
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 2 if stage == "pretrain" else 1) for stage in STAGES]
    assert adaptation.status["usage"]["restarts"] == 0


def test_an_operator_that_was_killed_adopts_the_job_set(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet, release: Release
) -> None:
    kubelet.script = stays_in("pretrain")
    adaptation = Adaptation(control_plane, place, profile)
    before = {pod["metadata"]["uid"] for pod in adaptation.wait_for_run("pretrain", pods=2)}
    assert release.operator is not None
    release.operator.kill()
    release.run_operator()
    assert {pod["metadata"]["uid"] for pod in adaptation.running("pretrain")} == before
    kubelet.script = healthy
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]


def test_deleting_the_adaptation_takes_the_job_sets_along(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = stays_in("pretrain")
    adaptation = Adaptation(control_plane, place, profile)
    adaptation.wait_for_run("pretrain", pods=2)
    control_plane.api.delete("DomainAdaptation", adaptation.name, place)
    eventually(lambda: job_sets(adaptation, "pretrain") == [] == adaptation.children("Pod"), "all gone")


def test_what_is_left_is_cleaned_up_after_the_end(
    control_plane: ControlPlane, place: str, profile: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    adaptation = Adaptation(control_plane, place, profile, cleanup={"afterSeconds": 1})
    adaptation.wait_for_phase("Published")
    eventually(lambda: not any(job_sets(adaptation, stage) for stage in STAGES), "the JobSets gone")
    eventually(lambda: adaptation.children("ConfigMap") == [] == adaptation.children("Pod"), "the rest gone")
    assert adaptation.phase == "Published"
    assert adaptation.condition("Finished")["reason"] == "Published"
