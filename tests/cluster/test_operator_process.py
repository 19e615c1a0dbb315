"""Tests the operator process itself: its Lease, its watches, its start and its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from testcluster.adaptations import (
    STAGES,
    Adaptation,
    healthy,
    make_claim,
    make_profile,
    stays_in,
    token_kubeconfig,
)
from testcluster.api_proxy import ApiProxy, Silence
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

LEASES = "coordination.k8s.io/v1"


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str) -> Iterator[OperatorProcess]:
    with OperatorProcess(control_plane, [namespace], flags=["--resync-seconds=1"]) as running:
        yield running


def test_who_loses_the_lease_ends_at_once(
    control_plane: ControlPlane, namespace: str, operator: OperatorProcess
) -> None:
    operator.wait_for("acting")
    thief = {"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 60}}
    control_plane.api.patch("Lease", "dapt", thief, namespace, api_version=LEASES)
    assert operator.process.wait(30) == 1
    (told,) = operator.lines("the Lease was lost: another operator may act, so this one ends")
    assert told["lease"] == f"{namespace}/dapt"
    lease = control_plane.api.get("Lease", "dapt", namespace, api_version=LEASES)
    assert lease["spec"]["holderIdentity"] == "thief"


def jobset_definition() -> dict[str, Any]:
    """Enough of JobSet's CRD to be listed and watched."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1alpha2", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    approved = {"api-approved.kubernetes.io": "unapproved, a test's own"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "jobsets.jobset.x-k8s.io", "annotations": approved},
        "spec": {
            "group": "jobset.x-k8s.io",
            "scope": "Namespaced",
            "names": {
                "plural": "jobsets", "singular": "jobset", "kind": "JobSet", "listKind": "JobSetList",
            },
            "versions": [version],
        },
    }  # fmt: skip


def test_jobsets_are_watched_once_they_can_be_and_no_longer_than_that(
    control_plane: ControlPlane, namespace: str, operator: OperatorProcess
) -> None:
    if control_plane.api.find("CustomResourceDefinition", "jobsets.jobset.x-k8s.io"):
        pytest.skip("another test has JobSet installed in this control plane")
    operator.wait_for("acting")
    since = control_plane.audit.mark()

    def watches() -> set[str]:
        return {
            one.resource.rpartition("/")[2]
            for one in control_plane.audit.requests(since)
            if one.agent == "kopf" and one.verb == "watch" and one.namespace == namespace and one.code == 200
        }

    control_plane.api.create(jobset_definition())
    try:
        eventually(lambda: "jobsets" in watches(), "a watch of JobSets")
        assert watches() == {"jobsets", "jobs", "pods", "domainadaptations"}
    finally:
        control_plane.api.delete("CustomResourceDefinition", "jobsets.jobset.x-k8s.io")
    told = operator.wait_for("watched kinds have changed, restarting the watches", count=2)
    assert "jobsets" not in told["kinds"]
    assert operator.process.is_alive
    assert operator.get("/healthz") == "ok\n"


def test_resync_makes_up_for_silent_watches(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    make_claim(control_plane, namespace)
    kubelet.script = healthy
    with ApiProxy(control_plane) as proxy:
        deaf = token_kubeconfig(control_plane, namespace, proxy.url)
        proxy.plant(Silence(), lambda call: call.verb == "watch", times=None)
        flags = ["--resync-seconds=1"]
        with OperatorProcess(control_plane, [namespace], kubeconfig=deaf, flags=flags) as operator:
            operator.wait_for("acting")
            adaptation = Adaptation(control_plane, namespace, make_profile(control_plane))
            adaptation.wait_for_phase("Published", seconds=120)
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]


def bind(plane: ControlPlane, namespace: str, account: str, home: str) -> None:
    """Give an account every right in one namespace."""
    plane.api.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": account},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "cluster-admin",
            },
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": home}],
        },
        namespace,
    )


def test_forbidden_namespace_does_not_stop_the_other(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    forbidden, name = control_plane.make_namespace(f"{namespace}-forbidden"), f"{namespace}-operator"
    control_plane.api.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}, namespace
    )
    reads = {"apiGroups": ["dapt.dev"], "resources": ["adaptationprofiles"], "verbs": ["list", "watch"]}
    rbac = "rbac.authorization.k8s.io"
    control_plane.api.create(
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": [reads]}
    )
    control_plane.api.create(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
    )
    bind(control_plane, namespace, name, namespace)
    kubelet.script = stays_in("prepare")
    profile = make_profile(control_plane)
    for one in (namespace, forbidden):
        make_claim(control_plane, one)
    config = control_plane.kubeconfig_for(namespace, name, url=control_plane.url)
    waits = Adaptation(control_plane, forbidden, profile)
    flags = ["--resync-seconds=1"]
    with OperatorProcess(control_plane, [namespace, forbidden], kubeconfig=config, flags=flags) as operator:
        Adaptation(control_plane, namespace, profile).wait_for_run("prepare")
        told = operator.lines("objects cannot be listed, trying again")
        assert sorted((line["kind"], line["namespace"]) for line in told) == [
            (kind, forbidden) for kind in ("DomainAdaptation", "Job", "Pod")
        ]
        failing = f'dapt_list_failing{{kind="Pod",namespace="{forbidden}"}} 1.0'
        assert failing in operator.get("/metrics")
        assert operator.get("/healthz") == operator.get("/readyz") == "ok\n"
        bind(control_plane, forbidden, name, namespace)
        waits.wait_for_run("prepare")
        assert "dapt_list_failing{" not in operator.get("/metrics")


def test_an_adaptation_of_another_instance_is_left_alone(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    make_claim(control_plane, namespace)
    kubelet.script = stays_in("prepare")
    profile = make_profile(control_plane)
    with OperatorProcess(control_plane, [namespace]) as ours:
        adaptation = Adaptation(control_plane, namespace, profile)
        adaptation.wait_for_run("prepare")
        assert ours.terminate() == 0
    before = adaptation.resource
    with OperatorProcess(control_plane, [namespace], instance="elsewhere/dapt") as other:
        other.wait_for("reconciled")
        kubelet.script = healthy
        eventually(lambda: not kubelet.pods, "the end of prepare")
        other.wait_for("reconciled", count=2)
        assert [line for line in other.lines("reconciled") if line["status"] or line["apply"]] == []
    assert adaptation.resource["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
