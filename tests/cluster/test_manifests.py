"""What launchers render, before the real API server, its Pod Security admission and the real Job controller."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from dapt_operator.api.validation.pod_security import breaches
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.stage_run import Manifest, Owner, plain
from support.launch_builders import ON_THE_CLUSTER, owner, profile, resource, stage_run
from support.launch_cases import CASES, platform, rendered
from testcluster.api import Api, ApiError
from testcluster.control_plane import ControlPlane
from testcluster.controllers import lacking
from testcluster.jobset import jobset
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}
LONGEST_NAME = "a" * 63
ON_ONE_NODE = ("destination", "tuning_data")
"""Stages with the longest names: they never have more than one pod, whose number takes one digit."""
_numbers = itertools.count(1)


@pytest.fixture
def restricted(control_plane: ControlPlane) -> Iterator[str]:
    """A namespace that enforces the restricted standard."""
    name = control_plane.make_namespace(f"restricted-{next(_numbers)}", RESTRICTED)
    yield name
    control_plane.api.delete("Namespace", name)


@pytest.fixture(scope="module")
def jobset_plane() -> Iterator[ControlPlane]:
    """A control plane with the real JobSet: its webhook judges too."""
    why = lacking("jobset")
    if why:
        pytest.skip(why)
    with ControlPlane() as plane, jobset(plane):
        plane.make_namespace("restricted", RESTRICTED)
        yield plane


def try_create(api: Api, manifest: Manifest, namespace: str) -> dict[str, Any]:
    """What the API server would store; strict about unknown fields, and nothing is made."""
    inside = plain(manifest)
    inside["metadata"]["namespace"] = namespace
    path = api.path(manifest["kind"], namespace, api_version=manifest["apiVersion"])
    answer: dict[str, Any] = api.request("POST", path, inside, dryRun="All", fieldValidation="Strict")
    return answer


def pod_of(job_spec: Any, **changes: Any) -> dict[str, Any]:
    """A pod as the Job controller would make it."""
    template = plain(job_spec["template"])
    metadata = template["metadata"] | {"name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"] | changes}


def made_of(template: Any) -> dict[str, Any]:
    """A pod that is made with a profile's template."""
    (*_, job) = LAUNCHERS["IndexedJob"].render(stage_run(), profile(podTemplate=template), owner())
    return pod_of(job["spec"])


def with_trainer(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "trainer"} | fields]}}


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_accepted(control_plane: ControlPlane, restricted: str, case: str) -> None:
    for manifest in rendered("IndexedJob", case):
        stored = try_create(control_plane.api, manifest, restricted)
        assert stored["metadata"]["name"] == manifest["metadata"]["name"]


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_accepted_where_gangs_are_jobsets(jobset_plane: ControlPlane, case: str) -> None:
    for manifest in rendered("JobSet", case):
        stored = try_create(jobset_plane.api, manifest, "restricted")
        assert stored["metadata"]["name"] == manifest["metadata"]["name"]


@pytest.mark.parametrize(
    "stage",
    [
        "destination",
        "tuning_data",
        "prepare",
        "baseline",
        "pretrain",
        "evaluate",
        "finetune",
        "verify",
        "publish",
    ],
)
def test_the_longest_names_are_accepted(
    control_plane: ControlPlane, restricted: str, jobset_plane: ControlPlane, stage: str
) -> None:
    of = owner(LONGEST_NAME)
    base = stage_run(nodes=1 if stage in ON_ONE_NODE else 10_000, of=of)
    identity = base.identity.model_copy(update={"stage": stage})
    run = type(base)(identity=identity, kind=base.kind, config=base.config, resources=base.resources)
    for launcher, plane, place in (
        ("IndexedJob", control_plane, restricted),
        ("JobSet", jobset_plane, "restricted"),
    ):
        chosen = LAUNCHERS[launcher]
        for manifest in (*chosen.shared(profile(), of, 2), *chosen.render(run, profile(), of)):
            try_create(plane.api, manifest, place)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][1] != platform()])
def test_every_pod_is_admitted_under_the_restricted_standard(
    control_plane: ControlPlane, restricted: str, case: str
) -> None:
    (*_, job) = rendered("IndexedJob", case)
    pod = pod_of(job["spec"])
    pod["spec"].pop("priorityClassName", None)  # no such class here
    assert try_create(control_plane.api, pod, restricted)["spec"]["restartPolicy"] == "Never"


LIFTED = {
    "a capability": with_trainer(securityContext={"capabilities": {"add": ["IPC_LOCK"]}}),
    "all capabilities kept": with_trainer(securityContext={"capabilities": {"drop": ["NET_RAW"]}}),
    "a privileged trainer": with_trainer(
        securityContext={"privileged": True, "allowPrivilegeEscalation": True}
    ),
    "root": {"spec": {"securityContext": {"runAsNonRoot": False, "runAsUser": 0}}},
    "root by number": with_trainer(securityContext={"runAsUser": 0}),
    "no seccomp": {"spec": {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}},
    "no apparmor": {"spec": {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}},
    "a selinux type": {"spec": {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}}},
    "a sysctl": {"spec": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "9"}]}}},
    "the host's network": {"spec": {"hostNetwork": True}},
    "the host's processes": {"spec": {"hostPID": True}},
    "the host's memory": {"spec": {"hostIPC": True}},
    "a folder of the host": {"spec": {"volumes": [{"name": "d", "hostPath": {"path": "/d"}}]}},
    "a container beside": {
        "spec": {
            "containers": [
                {"name": "x", "image": "registry.example/x", "securityContext": {"privileged": True,
                 "allowPrivilegeEscalation": True}}
            ]
        }
    },
}  # fmt: skip
KEPT = {
    "nothing": {},
    "placement": {"spec": {"nodeSelector": {"gpu": "h100"}, "tolerations": [{"operator": "Exists"}]}},
    "another user": {"spec": {"securityContext": {"runAsUser": 7000, "fsGroup": 7000}}},
    "a local seccomp profile": {
        "spec": {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "x.json"}}}
    },
    "a bound port": with_trainer(securityContext={"capabilities": {"add": ["NET_BIND_SERVICE"]}}),
    "a safe sysctl": {
        "spec": {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]}}
    },
    "a selinux level": {"spec": {"securityContext": {"seLinuxOptions": {"level": "s0:c1"}}}},
    "volumes": {
        "spec": {
            "volumes": [
                {"name": "a", "emptyDir": {}},
                {"name": "b", "projected": {"sources": [{"downwardAPI": {"items": []}}]}},
                {"name": "c", "csi": {"driver": "csi.example"}},
            ]
        }
    },
    "a container beside": {"spec": {"containers": [{"name": "x", "image": "registry.example/x"}]}},
    "one before": {"spec": {"initContainers": [{"name": "x", "image": "registry.example/x"}]}},
}


@pytest.mark.parametrize("name", LIFTED)
def test_what_we_call_a_breach_is_refused_by_the_admission(
    control_plane: ControlPlane, restricted: str, namespace: str, name: str
) -> None:
    pod = made_of(LIFTED[name])
    assert breaches(pod["spec"]) != ()
    with pytest.raises(ApiError) as refused:
        try_create(control_plane.api, pod, restricted)
    assert refused.value.status == 403
    assert 'violates PodSecurity "restricted:latest"' in refused.value.message
    try_create(control_plane.api, pod, namespace)  # legal where nothing is enforced


@pytest.mark.parametrize("name", KEPT)
def test_what_we_call_no_breach_is_admitted(control_plane: ControlPlane, restricted: str, name: str) -> None:
    pod = made_of(KEPT[name])
    assert breaches(pod["spec"]) == ()
    try_create(control_plane.api, pod, restricted)


def test_a_platforms_whole_template_is_legal_where_it_is_allowed(
    control_plane: ControlPlane, namespace: str
) -> None:
    (*_, job) = rendered("IndexedJob", "two-nodes-of-eight-gpus")
    control_plane.api.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "training"}}, namespace
    )
    pod = try_create(control_plane.api, pod_of(job["spec"]), namespace)
    assert [item["name"] for item in pod["spec"]["volumes"]] == [
        "work", "scratch", "shared-memory", "stage", "signing", "cache",
    ]  # fmt: skip


def test_the_job_controller_makes_a_gang_that_finds_itself(
    control_plane: ControlPlane, restricted: str
) -> None:
    api = control_plane.api
    adaptation = _adaptation(api, restricted)
    run = stage_run("done", nodes=2, of=adaptation)
    chosen = LAUNCHERS["IndexedJob"]
    for manifest in (*chosen.shared(profile(), adaptation, 2), *chosen.render(run, profile(), adaptation)):
        api.create(manifest)
    labels = f"dapt.dev/run={run.identity.key[:16]}"
    eventually(lambda: len(api.list("Pod", restricted, labels=labels)) == 2, "two pods")
    service = api.list("Service", restricted)[0]
    for pod in api.list("Pod", restricted, labels=labels):
        index = pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]
        assert pod["spec"]["hostname"] == f"{run.name}-{index}"
        assert pod["spec"]["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        variables = {item["name"]: item for item in pod["spec"]["containers"][0]["env"]}
        assert variables["PET_MASTER_ADDR"]["value"] == f"{run.name}-0.{service['metadata']['name']}"
        assert variables["PET_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"] == (
            "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        )
        assert not any("kube-api-access" in volume["name"] for volume in pod["spec"]["volumes"])
        tolerated = {
            item["key"]: item["tolerationSeconds"] for item in pod["spec"]["tolerations"] if "key" in item
        }
        assert tolerated == {"node.kubernetes.io/unreachable": 5, "node.kubernetes.io/not-ready": 30}


def test_a_queued_gang_has_no_pods_before_it_is_admitted(
    control_plane: ControlPlane, restricted: str
) -> None:
    api = control_plane.api
    adaptation = _adaptation(api, restricted)
    run = stage_run("done", nodes=2, queue="team", of=adaptation)
    for manifest in LAUNCHERS["IndexedJob"].render(run, profile(), adaptation):
        api.create(manifest)

    def suspended() -> bool:
        found = (api.get("Job", run.name, restricted).get("status") or {}).get("conditions") or []
        return any(item["type"] == "Suspended" and item["status"] == "True" for item in found)

    eventually(suspended, "the Job controller says Suspended")
    assert api.list("Pod", restricted) == []
    api.patch("Job", run.name, {"spec": {"suspend": False}}, restricted)
    eventually(lambda: len(api.list("Pod", restricted)) == 2, "two pods")


def _adaptation(api: Api, namespace: str) -> Owner:
    """A real one, or the garbage collector takes what it owns."""
    manifest = plain(resource(**ON_THE_CLUSTER))
    manifest["metadata"]["namespace"] = namespace
    created = api.create(manifest)
    return Owner(namespace=namespace, name=created["metadata"]["name"], uid=created["metadata"]["uid"])
