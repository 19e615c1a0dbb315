"""The chart on a real control plane: what it installs works with the rights that it grants, and needs them all."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from builders import adaptation, facts_for, profile
from dapt_contract.failure import Cause, ExitCode
from dapt_contract.run import RunIdentity
from dapt_operator.api import names
from dapt_operator.cluster.memory import Ends
from testcluster import build
from testcluster.api import Api, ApiError
from testcluster.control_plane import ControlPlane, NoComponentsError
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.pod_life import Life, ScriptedPod
from testcluster.release import Release
from testcluster.used_rights import anywhere, granted, told, used
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
RUN_SECONDS = 0.4
"""Long enough for a look at the ConfigMap of a live run."""
CLAIM = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane of its own: the chart brings the definitions here, nobody else."""
    if build.built("helm") is None and not build.have_go():
        pytest.skip("no helm: `make cluster` builds it where Go is")
    try:
        made = ControlPlane()
    except (NoComponentsError, build.BuildError) as error:
        pytest.skip(str(error))
    with made:
        made.make_namespace("dapt-system", RESTRICTED)
        yield made


@pytest.fixture
def kubelet(plane: ControlPlane) -> Iterator[ScriptedKubelet]:
    with ScriptedKubelet(plane, ends_well) as running:
        yield running
    assert running.errors == []


@pytest.fixture
def release(plane: ControlPlane, kubelet: ScriptedKubelet) -> Iterator[Release]:
    with Release(plane) as made:
        yield made


@pytest.fixture
def tenant(plane: ControlPlane) -> Iterator[str]:
    """A namespace that takes restricted pods alone."""
    name = plane.make_namespace("health", RESTRICTED)
    yield name
    plane.api.delete("Namespace", name)
    eventually(lambda: plane.api.find("Namespace", name) is None, "the namespace gone")


# --- scripts ---


def ends_well(pod: ScriptedPod) -> Life:
    if pod.stage is None:
        return Life()  # the operator's own pod
    return Life(Ends(facts=facts_for(pod.stage)), run_seconds=RUN_SECONDS)


def loses_a_rank_once(pod: ScriptedPod) -> Life:
    """The second pod of the first pretraining is lost, and the first waits for it in vain."""
    if pod.stage is None or pod.stage.kind != "pretrain" or pod.stage.run.try_number > 1:
        return ends_well(pod)
    if pod.index == 0:
        return Life()
    lost = Ends(ExitCode.INFRASTRUCTURE, cause=Cause.INFRASTRUCTURE, message="the network is gone")
    return Life(lost, run_seconds=RUN_SECONDS, log="NCCL WARN connection closed\n")


# --- a life that needs every right ---


def stand_in(group: str, version: str, kind: str) -> dict[str, Any]:
    """A definition of JobSet's or Kueue's kind without their controllers: rights are asked before what there is."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }


@pytest.fixture
def others(plane: ControlPlane) -> Iterator[None]:
    definitions = [
        stand_in("jobset.x-k8s.io", "v1alpha2", "JobSet"),
        stand_in("kueue.x-k8s.io", "v1beta1", "Workload"),
    ]
    for definition in definitions:
        plane.api.apply(definition)
    for definition in definitions:
        group, name = definition["spec"]["group"], definition["metadata"]["name"]
        version = definition["spec"]["versions"][0]["name"]
        path = f"/apis/{group}/{version}/{name.partition('.')[0]}"
        eventually(lambda path=path: answers(plane.api, path), f"{name} served")
    yield
    for definition in definitions:
        plane.api.delete("CustomResourceDefinition", definition["metadata"]["name"])


def answers(api: Api, path: str) -> bool:
    with contextlib.suppress(ApiError):
        return bool(api.request("GET", path))
    return False


def condition(api: Api, namespace: str, name: str, type_: str) -> tuple[str, str]:
    """Status and reason; empty before the first visit."""
    status = api.get("DomainAdaptation", name, namespace).get("status") or {}
    found = next((item for item in status.get("conditions") or [] if item["type"] == type_), {})
    return found.get("status", ""), found.get("reason", "")


def make(api: Api, namespace: str, name: str, **over: Any) -> dict[str, Any]:
    """Its files lie in a bucket: a cluster reads none of a machine."""
    manifest = json.loads(json.dumps(adaptation(name, **over)).replace("file:///", "s3://bucket/"))
    manifest["metadata"]["namespace"] = namespace
    return api.create(manifest)


def first_run(resource: dict[str, Any]) -> str:
    """Name of the objects of an adaptation's first run."""
    metadata = resource["metadata"]
    identity = RunIdentity(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        stage="prepare",
        attempt=1,
        try_number=1,
        fence=1,
    )
    return names.object_name(metadata["name"], "prepare", identity.key)


@contextlib.contextmanager
def somebody_edits(api: Api, namespace: str, name: str) -> Iterator[None]:
    """Annotates a resource all the time, so that statuses are written against an old version now and then."""
    over = threading.Event()

    def edit() -> None:
        number = 0
        while not over.wait(0.002):
            number += 1
            with contextlib.suppress(ApiError):
                api.patch(
                    "DomainAdaptation", name, {"metadata": {"annotations": {"n": str(number)}}}, namespace
                )

    thread = threading.Thread(target=edit)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


FOREIGN_JOB = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "spec": {
        "suspend": True,
        "template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "registry.example/x"}]}
        },
    },
}
FOREIGN_JOBSET = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "spec": {}}


def live_through_everything(plane: ControlPlane, release: Release, tenant: str) -> None:
    """Adaptations by which the operator needs every right that the chart can grant."""
    api = plane.api
    api.apply(profile("gang", storage={"existingClaim": None, "claimTemplate": CLAIM}))
    api.apply(profile("sets", launcher="JobSet", storage={"existingClaim": None, "claimTemplate": CLAIM}))
    # Somebody has the names of two runs (jobs get, jobsets get).
    taken = {
        "Job": make(api, tenant, "taken", profile="gang"),
        "JobSet": make(api, tenant, "set", profile="sets"),
    }
    for foreign in (FOREIGN_JOB, FOREIGN_JOBSET):
        metadata = {"name": first_run(taken[foreign["kind"]]), "namespace": tenant}
        api.create(foreign | {"metadata": metadata})
    release.run_operator()
    for name in ("taken", "set"):
        eventually(lambda name=name: condition(api, tenant, name, "Stalled") == ("True", "NameTaken"), name)
    # A queue that nobody serves (workloads list), a JobSet that is suspended (jobsets delete).
    make(api, tenant, "queued", profile="gang", queue="team")
    make(api, tenant, "pausing", profile="sets")
    eventually(lambda: condition(api, tenant, "queued", "QuotaReserved") == ("False", "WaitingForQuota"))
    jobsets = {"api_version": "jobset.x-k8s.io/v1alpha2", "labels": f"{names.LABEL_NAME}=pausing"}
    eventually(lambda: api.list("JobSet", tenant, **jobsets))
    api.patch("DomainAdaptation", "pausing", {"spec": {"suspend": True}}, tenant)
    eventually(lambda: not api.list("JobSet", tenant, **jobsets))
    # A whole life with a lost rank, edits from beside, and a clean-up that leaves nothing.
    make(
        api,
        tenant,
        "whole",
        profile="gang",
        resources={"nodes": 2},
        cleanup={"afterSeconds": 0, "volume": "Delete"},
    )
    with somebody_edits(api, tenant, "whole"):
        eventually(
            lambda: condition(api, tenant, "whole", "Finished") == ("True", "Published"),
            "published",
            seconds=90,
        )
    labels = f"{names.LABEL_NAME}=whole"
    for kind in ("Job", "ConfigMap", "Service", "PersistentVolumeClaim"):
        eventually(lambda kind=kind: not api.list(kind, tenant, labels=labels), f"no {kind} of it left")


def values_for(namespaces: list[str]) -> dict[str, Any]:
    return {"namespaces": namespaces, "features": {"jobSet": True, "kueue": True}}


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("where", ["whole cluster", "one namespace"])
def test_what_is_granted_is_what_is_used(
    plane: ControlPlane, kubelet: ScriptedKubelet, release: Release, tenant: str, where: str
) -> None:
    kubelet.script = loses_a_rank_once
    release.install(values_for([tenant] if where == "one namespace" else []))
    mark = plane.audit.mark()
    live_through_everything(plane, release, tenant)
    user = release.user
    release.stop_operator()
    may, (did, tried) = granted(plane, user), used(plane, user, mark)
    assert told(tried) == []
    if where == "whole cluster":
        may, did = anywhere(may), anywhere(did)
    assert told(may - did) == [], "granted and not used"
    assert told(did - may) == [], "used and not granted"


def test_without_switches_a_life_needs_no_more_than_is_granted(
    plane: ControlPlane, kubelet: ScriptedKubelet, release: Release, tenant: str
) -> None:
    release.install({})
    mark = plane.audit.mark()
    plane.api.apply(profile("gang", storage={"existingClaim": None, "claimTemplate": CLAIM}))
    make(plane.api, tenant, "plain", profile="gang")
    release.run_operator()
    eventually(lambda: condition(plane.api, tenant, "plain", "Finished") == ("True", "Published"), seconds=60)
    _, tried = used(plane, release.user, mark)
    assert told(tried) == ["list jobset.x-k8s.io/jobsets"]  # whether it may is found out by asking


def test_an_upgrade_leaves_running_pods_alone_and_uninstalling_leaves_the_definitions(
    plane: ControlPlane, kubelet: ScriptedKubelet, release: Release, tenant: str
) -> None:
    api = plane.api

    def pods() -> dict[str, str]:
        found = api.list("Pod", tenant, labels=f"{names.LABEL_NAME}=long,{names.LABEL_STAGE}=pretrain")
        return {item["metadata"]["uid"]: item["status"]["phase"] for item in found}

    kubelet.script = lambda pod: (
        Life() if pod.stage is None or pod.stage.kind == "pretrain" else ends_well(pod)
    )
    notes = release.install({})
    assert "kubectl get adaptationprofiles" in notes
    api.apply(profile("gang", storage={"existingClaim": None, "claimTemplate": CLAIM}))
    make(api, tenant, "long", profile="gang", resources={"nodes": 2})
    release.run_operator()
    before = eventually(lambda: pods() if set(pods().values()) == {"Running"} and len(pods()) == 2 else {})
    release.install({"operator": {"workers": 2}})
    release.run_operator()
    assert pods() == before
    release.stop_operator()
    release.uninstall()
    assert pods() == before
    assert api.get("DomainAdaptation", "long", tenant)["status"]["phase"] == "Pretraining"
    release.install({})
    release.run_operator()
    kubelet.script = ends_well
    eventually(lambda: condition(api, tenant, "long", "Finished") == ("True", "Published"), seconds=60)


def test_the_api_server_takes_every_object_of_the_chart(
    plane: ControlPlane, release: Release, tenant: str
) -> None:
    policy = {"enabled": True, "apiServer": {"cidrs": ["10.96.0.1/32"]}}
    said = release.install({"namespaces": [tenant], "networkPolicy": policy, "features": {"kueue": True}})
    assert f"looks after DomainAdaptations in {tenant}." in said
    networks = {"api_version": "networking.k8s.io/v1"}
    assert len(plane.api.list("NetworkPolicy", tenant, **networks)) == 2
    assert len(plane.api.list("NetworkPolicy", "dapt-system", **networks)) == 1


def test_the_operators_pod_is_taken_where_restricted_is_enforced(
    plane: ControlPlane, release: Release
) -> None:
    release.install({})
    labels = "app.kubernetes.io/name=dapt"
    (pod,) = eventually(lambda: plane.api.list("Pod", "dapt-system", labels=labels), "the operator's pod")
    assert pod["spec"]["serviceAccountName"] == "dapt"
    (token,) = [item for item in pod["spec"]["volumes"] if item["name"].startswith("kube-api-access")]
    assert token["projected"]["sources"][0]["serviceAccountToken"]["path"] == "token"
