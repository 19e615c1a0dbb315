"""A namespace that enforces the Restricted standard takes every pod that dapt renders; asked of a real API server."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.stages import KINDS
from dapt_operator.api import names
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.stage_run import StageRun, plain
from support.launch_builders import owner, profile, stage_run
from support.worlds import World
from testcluster import host_pods
from testcluster.api import ApiError
from testcluster.control_plane import ControlPlane

pytestmark = pytest.mark.cluster

RUNS = {
    "one CPU pod": stage_run(),
    "a gang": stage_run(nodes=4, processes=8, accelerators=8),
    "with secrets, claims and the signing key": stage_run(
        secret_names=("dapt-s3",), claims=("corpora", "models"), signs_checkpoints=True
    ),
    "queued, with a priority and a deadline": stage_run(
        queue="team", priority_class_name="research", deadline_seconds=3600
    ),
}


@pytest.fixture(scope="module")
def restricted(control_plane: ControlPlane) -> str:
    api = control_plane.api
    api.create(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "research"},
            "value": 1,
        }
    )
    return control_plane.make_namespace("restricted", {"pod-security.kubernetes.io/enforce": "restricted"})


def pod(run: StageRun, launcher: str, **changes: Any) -> dict[str, Any]:
    """A pod as a Job's controller would make it of the template."""
    rendered = plain(LAUNCHERS[launcher].render(run, profile(**changes), owner())[-1])["spec"]
    job = rendered["replicatedJobs"][0]["template"]["spec"] if "replicatedJobs" in rendered else rendered
    return trial(job)


def trial(job: dict[str, Any]) -> dict[str, Any]:
    """A pod of a Job's template."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "trial"},
        "spec": job["template"]["spec"],
    }


def admitted(control_plane: ControlPlane, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """What the API server would store; nothing is stored."""
    path = control_plane.api.path("Pod", namespace)
    return dict(control_plane.api.request("POST", path, manifest, dryRun="All", fieldValidation="Strict"))


@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
@pytest.mark.parametrize("case", sorted(RUNS))
def test_a_restricted_namespace_takes_our_pods(
    control_plane: ControlPlane, restricted: str, launcher: str, case: str
) -> None:
    made = admitted(control_plane, restricted, pod(RUNS[case], launcher))
    assert made["spec"]["securityContext"]["runAsNonRoot"] is True


EVERYTHING: dict[str, Any] = {
    "finetuning": {"data": [{"source": "s3://text/instructions.jsonl"}]},
    "preference": {"data": [{"source": "s3://text/pairs.jsonl"}]},
    "selection": {"interpolate": [0.8, 1.0]},
}
OTHER_PAIRS = {"preference": {"data": [{"source": "s3://text/other-pairs.jsonl"}]}}
"""Edited in after `prepare`, so that a stage of its own prepares them."""


def pods_of_a_life(launcher: str) -> dict[str, dict[str, Any]]:
    """A pod of each kind of stage, of an adaptation that has them all."""
    world = World(EVERYTHING, offered={"launcher": launcher})
    world.live_until("baseline")
    world.edit(**OTHER_PAIRS)
    world.live()
    found = {}
    for plan in world.plans:
        for manifest in plan.apply:
            if manifest["kind"] in ("Job", "JobSet"):
                spec = plain(manifest)["spec"]
                job = spec["replicatedJobs"][0]["template"]["spec"] if "replicatedJobs" in spec else spec
                kind = manifest["metadata"]["labels"][names.LABEL_KIND]
                found[kind] = trial(job)
    return found


@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_a_restricted_namespace_takes_the_pods_of_every_stage(
    control_plane: ControlPlane, restricted: str, launcher: str
) -> None:
    pods = pods_of_a_life(launcher)
    assert set(pods) == set(KINDS)
    for kind, manifest in pods.items():
        made = admitted(control_plane, restricted, manifest)
        assert made["spec"]["securityContext"]["runAsNonRoot"] is True, kind


def test_it_refuses_what_a_template_adds_against_the_standard(
    control_plane: ControlPlane, restricted: str
) -> None:
    template = {"spec": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}}
    with pytest.raises(ApiError) as refused:
        admitted(control_plane, restricted, pod(RUNS["one CPU pod"], "IndexedJob", podTemplate=template))
    assert refused.value.message == (
        'pods "trial" is forbidden: violates PodSecurity "restricted:latest": restricted volume types '
        '(volume "root" uses restricted volume type "hostPath")'
    )


def test_the_whole_nodes_template_changes_nothing_else(control_plane: ControlPlane, restricted: str) -> None:
    template = host_pods.pod_template()
    with pytest.raises(ApiError) as refused:
        admitted(control_plane, restricted, pod(RUNS["one CPU pod"], "IndexedJob", podTemplate=template))
    violations = refused.value.message.partition('"restricted:latest": ')[2]
    assert violations.startswith("restricted volume types (volumes ")
    assert violations.endswith('use restricted volume type "hostPath")')
