"""Jobs and pods that somebody makes to pass for ours, beside the real Job controller: they change nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.testing.objects import Ends
from testcluster.adaptations import STAGES, Adaptation, ends_well, make_claim, make_profile, stays_in
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.pod_life import Life, ScriptedPod
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

OF_THE_SERVER = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink")
BY_THE_CONTROLLER = (
    "controller-uid",
    "job-name",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
)


def self_made(job: dict[str, Any], name: str) -> dict[str, Any]:
    """A Job with another's labels, owner and pods, as a tenant could apply it."""
    made = {"apiVersion": "batch/v1", "kind": "Job", **copy.deepcopy(job)}
    made.pop("status", None)
    for field in OF_THE_SERVER:
        made["metadata"].pop(field, None)
    made["metadata"]["name"] = name
    made["spec"].pop("selector", None)
    for metadata in (made["metadata"], made["spec"]["template"]["metadata"]):
        for label in BY_THE_CONTROLLER:
            metadata.get("labels", {}).pop(label, None)
        metadata.get("labels", {})["dapt.dev/try"] = "7"
        metadata.get("labels", {})["dapt.dev/fence"] = "999999"
    return made


def self_made_pod(pod: dict[str, Any], name: str) -> dict[str, Any]:
    """A pod with the labels of one of ours, by which the Job controller may take it for its own."""
    made = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(pod)}
    made.pop("status", None)
    for field in (*OF_THE_SERVER, "ownerReferences", "finalizers", "generateName"):
        made["metadata"].pop(field, None)
    made["metadata"]["name"] = name
    made["metadata"]["labels"]["theirs"] = "yes"
    made["spec"].pop("nodeName", None)
    return made


def theirs_fail(pod: ScriptedPod) -> Life:
    """Self-made pods say that the user's data is wrong, which ours would never be asked about again."""
    if is_theirs(pod.manifest):
        lie = Ends(exit_code=64, cause=Cause.BAD_INPUT, message="theirs")
        return Life(then=lie, run_seconds=0.1)
    return stays_in("pretrain")(pod)  # type: ignore[return-value]


def test_self_made_jobs_and_pods_neither_end_nor_feed_a_stage(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    make_claim(control_plane, namespace)
    kubelet.script = theirs_fail
    api = control_plane.api
    with OperatorProcess(control_plane, [namespace]):
        adaptation = Adaptation(control_plane, namespace, make_profile(control_plane))
        pods = adaptation.wait_for_run("pretrain", pods=2)
        (job,) = adaptation.jobs("pretrain")
        api.create(self_made(job, "clinical-pretrain-self-made"))
        api.create(self_made_pod(pods[0], "self-made"))

        def have_lied() -> bool:
            ended = [pod["status"].get("phase") for pod in api.list("Pod", namespace) if is_theirs(pod)]
            return len(ended) >= 2 and set(ended) <= {"Failed", "Succeeded"}

        eventually(have_lied, "the self-made pods have ended", seconds=60)
        # A label taken off a real Job and put back is no end of it either.
        labels = job["metadata"]["labels"]
        for value in (None, labels["dapt.dev/adaptation"]):
            patch = {"metadata": {"labels": {"dapt.dev/adaptation": value}}}
            api.patch("Job", job["metadata"]["name"], patch, namespace)
        kubelet.script = all_end
        adaptation.wait_for_phase("Published")
    # Where the real controller adopts the pod and sees it fail before it counts one too many, it fails our Job: the run
    # is repeated, and still nobody has asked that pod what it says.
    assert [stage for stage, _ in adaptation.runs()] == list(STAGES)
    assert all(tries == 1 or (stage, tries) == ("pretrain", 2) for stage, tries in adaptation.runs())
    assert "theirs" not in str(adaptation.status)


def is_theirs(pod: Mapping[str, Any]) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return "theirs" in labels or labels.get("dapt.dev/try") == "7"


def all_end(pod: ScriptedPod) -> Life:
    """Ours succeed; of theirs nothing is asked any more."""
    life = theirs_fail(pod)
    stage: StageFile | None = pod.stage
    if life.then is None and stage is not None:
        return Life(then=ends_well(stage), run_seconds=0.2)
    return life
