"""Tests objects that the cluster refuses: the status quotes the cluster's message, and a change alone recovers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testcluster.adaptations import STAGES, Adaptation, healthy, make_claim, make_profile
from testcluster.api import ApiError
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

ADMISSION = "admissionregistration.k8s.io/v1"


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet) -> Iterator[str]:
    """The test's namespace, with a work volume and an operator of its own; all runs succeed."""
    make_claim(control_plane, namespace)
    kubelet.script = healthy
    with OperatorProcess(control_plane, [namespace]):
        yield namespace


def refusal(adaptation: Adaptation) -> str:
    """The message, once it is stalled by a refusal; and nothing of it is there as if it ran."""
    adaptation.wait(lambda one: one.condition("Stalled").get("reason") == "Refused", "the refusal")
    assert adaptation.condition("Stalled")["status"] == "True"
    assert adaptation.condition("Ready")["status"] == adaptation.condition("Reconciling")["status"] == "False"
    assert adaptation.children("Job") == []
    return str(adaptation.condition("Stalled")["message"])


def test_a_launcher_whose_controller_is_not_installed(control_plane: ControlPlane, place: str) -> None:
    profile = make_profile(control_plane, launcher="JobSet")
    adaptation = Adaptation(control_plane, place, profile)
    message = refusal(adaptation)
    assert "JobSet clinical-destination-" in message
    assert message.endswith(
        "JobSet is not installed here; install it, or give the profile the launcher IndexedJob;"
        " once it is allowed, this continues by itself"
    )
    control_plane.api.patch("AdaptationProfile", profile, {"spec": {"launcher": "IndexedJob"}})
    adaptation.wait_for_phase("Published")
    # The ConfigMap of the first try holds the old profile's copy, so its number is passed over.
    assert adaptation.runs() == [(stage, 2 if stage == "destination" else 1) for stage in STAGES]


def test_a_quota_of_objects(control_plane: ControlPlane, place: str) -> None:
    hard = {"count/jobs.batch": "0"}
    control_plane.api.create(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": hard}},
        place,
    )
    adaptation = Adaptation(control_plane, place, make_profile(control_plane))
    message = refusal(adaptation)
    assert "exceeded quota: team" in message
    assert "limited: count/jobs.batch=0" in message
    control_plane.api.delete("ResourceQuota", "team", place)
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]


def test_pods_over_a_quota_are_waited_out_with_the_message_of_the_quota(
    control_plane: ControlPlane, place: str
) -> None:
    control_plane.api.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "team"},
            "spec": {"hard": {"pods": "0"}},
        },
        place,
    )
    adaptation = Adaptation(control_plane, place, make_profile(control_plane))
    adaptation.wait(
        lambda one: "exceeded quota: team" in one.condition("Reconciling").get("message", ""),
        "the quota's words",
    )
    assert adaptation.condition("Reconciling")["status"] == "True"
    assert adaptation.condition("Stalled")["status"] == "False"
    assert adaptation.condition("Reconciling")["message"].startswith(
        "destination waits: PodsRefused: its pods are forbidden"
    )
    control_plane.api.delete("ResourceQuota", "team", place)
    adaptation.wait_for_phase("Published", seconds=120)  # the Job controller tries again ever less often
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]


def test_pods_below_the_namespaces_security_level(control_plane: ControlPlane, place: str) -> None:
    enforce = "pod-security.kubernetes.io/enforce"
    control_plane.api.patch("Namespace", place, {"metadata": {"labels": {enforce: "restricted"}}})
    template = {"spec": {"hostNetwork": True}}
    adaptation = Adaptation(control_plane, place, make_profile(control_plane, podTemplate=template))
    adaptation.wait(lambda one: one.condition("Stalled").get("reason") == "Refused", "the refusal")
    assert (
        'violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)'
        in (adaptation.condition("Stalled")["message"])
    )
    control_plane.api.patch("Namespace", place, {"metadata": {"labels": {enforce: None}}})
    adaptation.wait_for_phase("Published", seconds=120)


def test_a_policy_of_the_cluster(control_plane: ControlPlane, place: str) -> None:
    name = f"{place}-no-pretraining"
    labels = "object.metadata.labels['dapt.dev/stage']"
    policy = {
        "apiVersion": ADMISSION,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["batch"],
                        "apiVersions": ["v1"],
                        "resources": ["jobs"],
                        "operations": ["CREATE"],
                    }
                ]
            },
            "validations": [
                {
                    "expression": f"{labels} != 'destination'",
                    "message": "no training before the review of the data",
                }
            ],
        },
    }
    binding = {
        "apiVersion": ADMISSION,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {
            "policyName": name,
            "validationActions": ["Deny"],
            "matchResources": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place}},
            },
        },
    }
    for manifest in (policy, binding):
        control_plane.api.create(manifest)
    try:
        wait_until_denied(control_plane, place)
        adaptation = Adaptation(control_plane, place, make_profile(control_plane))
        assert "no training before the review of the data" in refusal(adaptation)
    finally:
        for kind in ("ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"):
            control_plane.api.delete(kind, name, api_version=ADMISSION)
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]


def wait_until_denied(plane: ControlPlane, namespace: str) -> None:
    """The API server takes a policy up some time after it was written."""
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "try", "labels": {"dapt.dev/stage": "destination"}},
        "spec": {
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "a", "image": "registry.example/a"}],
                }
            }
        },
    }

    def is_denied() -> bool:
        try:
            plane.api.apply(job, namespace, dry_run=True)
        except ApiError as error:
            return "review of the data" in error.message
        return False

    eventually(is_denied, "the policy in force")
