"""Real pods: kubelet, containerd, pod network and the cluster's DNS below a real control plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testcluster import host_pods
from testcluster.control_plane import ControlPlane
from testcluster.node import WholeNode, hindrance
from testcluster.waiting import eventually

from dapt_contract.message import decode_message
from dapt_contract.stages.publish import PublishFacts
from dapt_operator.api.run import Owner
from dapt_operator.launchers import indexed_job
from launch_builders import fake_manifests, profile, resource, stage_run

pytestmark = [pytest.mark.cluster, pytest.mark.whole_node, pytest.mark.torch, pytest.mark.timeout(900)]

POD_SECONDS = 300.0
"""Patience with pods that import torch on a busy machine."""
FAKE_AGENT = (
    f"import runpy; runpy.run_path('{host_pods.INSIDE}/tests/agent/fake/pod.py', run_name='__main__')"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    why_not = hindrance()
    if why_not:
        pytest.skip(why_not)
    with ControlPlane(node_lifecycle=True) as control_plane:
        control_plane.install_crds()
        yield control_plane


@pytest.fixture(scope="module")
def node(cluster: ControlPlane) -> Iterator[WholeNode]:
    with WholeNode(cluster, images=[host_pods.BASE_IMAGE]) as whole:
        yield whole


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return host_pods.pod_template(host_pods.open_folder(tmp_path_factory.mktemp("extensions")))


def pods(cluster: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    return cluster.api.list("Pod", namespace)


def test_two_pods_find_each_other_by_the_clusters_names(
    cluster: ControlPlane, node: WholeNode, template: dict[str, Any], tmp_path: Path
) -> None:
    namespace = cluster.make_namespace("names", host_pods.PRIVILEGED)
    made = cluster.api.create(resource() | {"metadata": {"name": "clinical-llama", "namespace": namespace}})
    owner = Owner(namespace=namespace, name="clinical-llama", uid=made["metadata"]["uid"])
    work = host_pods.open_folder(tmp_path / "work")
    cluster.api.create(host_pods.persistent_volume("names-work", work))
    changes: dict[str, Any] = {
        "trainerImage": host_pods.BASE_IMAGE.reference,
        "podTemplate": template,
        "storage": {"claimTemplate": host_pods.claim_spec()},
    }
    run = stage_run("all-reduce", nodes=2, of=owner)
    for manifest in indexed_job.shared(profile(**changes), owner, nodes=2):
        cluster.api.create(manifest)
    config, job = fake_manifests(run, owner, **changes)
    job["spec"]["template"]["spec"]["containers"][0]["command"] = ["python", "-c", FAKE_AGENT]
    for manifest in (config, job):
        cluster.api.create(manifest)

    def ended() -> list[dict[str, Any]]:
        found = pods(cluster, namespace)
        statuses = [status for pod in found for status in pod["status"].get("containerStatuses", [])]
        last_words = [status["state"]["terminated"] for status in statuses if "terminated" in status["state"]]
        assert len(last_words) == 2, [pod["status"] for pod in found]
        return sorted(last_words, key=lambda ended: '"facts"' not in ended["message"])

    first, second = eventually(ended, "both pods' end", seconds=POD_SECONDS, every_seconds=0.5)
    assert (first["exitCode"], second["exitCode"]) == (0, 0)
    assert isinstance(decode_message(first["message"]).parsed_facts(), PublishFacts)
    assert decode_message(second["message"]).facts is None
    assert [(work / f"sum-{rank}").read_text() for rank in (0, 1)] == ["3.0", "3.0"]
