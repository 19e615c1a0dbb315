"""The chart on a real control plane: what it installs works with the rights that it grants, and needs them all."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_operator.api import names
from dapt_operator.testing.objects import Ends
from support.builders import facts_for
from support.chart_values import UNUSUAL
from testcluster import build
from testcluster.adaptations import Adaptation, make_profile, stays_in
from testcluster.api import Api, ApiError
from testcluster.control_plane import ControlPlane, NoComponentsError
from testcluster.helm import HelmError
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.pod_life import Life, ScriptedPod
from testcluster.release import Release
from testcluster.used_rights import Right, anywhere, granted, told, used
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
_numbers = itertools.count(1)
RUN_SECONDS = 0.4
"""Long enough for a look at the ConfigMap of a live run."""
STORAGE = {
    "existingClaim": None,
    "claimTemplate": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}


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
    """A namespace of the test's own that takes restricted pods alone."""
    name = plane.make_namespace(f"health-{next(_numbers)}", RESTRICTED)
    yield name
    for resource in plane.api.list("DomainAdaptation", name):
        plane.api.delete("DomainAdaptation", resource["metadata"]["name"], name)


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


def waits_in_pretraining(pod: ScriptedPod) -> Life:
    """The same; the pretraining of `long` runs on."""
    is_long = pod.labels.get(names.LABEL_NAME) == "long"
    if is_long and pod.stage is not None and pod.stage.kind == "pretrain":
        return Life()
    return loses_a_rank_once(pod)


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


@pytest.fixture(scope="module")
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
        eventually(partial(answers, plane.api, path), f"{name} served")
    yield
    for definition in definitions:
        plane.api.delete("CustomResourceDefinition", definition["metadata"]["name"])


def answers(api: Api, path: str) -> bool:
    with contextlib.suppress(ApiError):
        return bool(api.request("GET", path))
    return False


def becomes(adaptation: Adaptation, type_: str, status: str, reason: str) -> None:
    """Wait until a condition says this."""

    def look(one: Adaptation) -> bool:
        found = one.condition(type_)
        return (found.get("status"), found.get("reason")) == (status, reason)

    adaptation.wait(look, f"{type_}={status} {reason} of {adaptation.name}", seconds=90)


@contextlib.contextmanager
def somebody_edits(adaptation: Adaptation) -> Iterator[None]:
    """Annotates a resource again and again, so that a status is written against an old version now and then."""
    over = threading.Event()
    api = adaptation.plane.api

    def edit() -> None:
        number = 0
        while not over.wait(0.02):
            number += 1
            with contextlib.suppress(ApiError):
                annotations = {"metadata": {"annotations": {"n": str(number)}}}
                api.patch("DomainAdaptation", adaptation.name, annotations, adaptation.namespace)

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


def live_through_everything(
    plane: ControlPlane, release: Release, kubelet: ScriptedKubelet, tenant: str
) -> None:
    """Adaptations by which two replicas need every right that the chart can grant."""
    api, mark = plane.api, plane.audit.mark()
    gangs, sets = (
        make_profile(plane, storage=STORAGE),
        make_profile(plane, storage=STORAGE, launcher="JobSet"),
    )
    # Somebody has the names of two runs: jobs get, jobsets get.
    taken = [Adaptation(plane, tenant, gangs, "job"), Adaptation(plane, tenant, sets, "set")]
    for adaptation, foreign in zip(taken, (FOREIGN_JOB, FOREIGN_JOBSET), strict=True):
        api.create(foreign | {"metadata": {"name": adaptation.first_run(), "namespace": tenant}})
    release.run_operator()
    release.run_standby()
    for adaptation in taken:
        becomes(adaptation, "Stalled", "True", "NameTaken")
    # A queue that nobody serves (workloads list), a JobSet that is suspended (jobsets delete).
    queued = Adaptation(plane, tenant, gangs, "queued", queue="team")
    pausing = Adaptation(plane, tenant, sets, "pausing")
    becomes(queued, "QuotaReserved", "False", "WaitingForQuota")
    jobsets = {"api_version": "jobset.x-k8s.io/v1alpha2", "labels": f"{names.LABEL_NAME}=pausing"}
    eventually(lambda: api.list("JobSet", tenant, **jobsets), "a JobSet")
    # Nobody makes pods of it: why not (events list)?
    why = Right(tenant, "", "events", "list")
    eventually(lambda: why in used(plane, release.user, mark)[0], "a look at its Events", every_seconds=0.5)
    pausing.patch(suspend=True)
    # A whole life with a conflict (domainadaptations get), a lost rank and a clean-up that leaves nothing.
    whole = Adaptation(plane, tenant, gangs, "whole", cleanup={"afterSeconds": 0, "volume": "Delete"})
    look_again = Right(tenant, "dapt.dev", "domainadaptations", "get")
    with somebody_edits(whole):
        eventually(lambda: look_again in used(plane, release.user, mark)[0], "a conflict", every_seconds=0.5)
    becomes(whole, "Finished", "True", "Published")
    for kind in ("Job", "ConfigMap", "Service", "PersistentVolumeClaim"):
        eventually(partial(lambda kind: not whole.children(kind), kind), f"no {kind} of it left")
    assert ("pretrain", 2) in whole.runs()
    changes_hands(plane, release, kubelet, Adaptation(plane, tenant, gangs, "long"))
    # The garbage collector takes half a minute to learn of a new kind.
    eventually(lambda: not api.list("JobSet", tenant, **jobsets), "no JobSet", seconds=60)


def changes_hands(plane: ControlPlane, release: Release, kubelet: ScriptedKubelet, long: Adaptation) -> None:
    """The first replica loses the Lease in the middle of a run whose objects somebody deletes and edits."""
    api, tenant = plane.api, long.namespace
    long.wait_for_run("pretrain", pods=2)
    lists = (Right(tenant, "batch", "jobs", "list"), Right(tenant, "", "pods", "list"))
    mark = plane.audit.mark()
    uids = set()
    for kind in ("Secret", "Service"):
        (shared,) = long.children(kind)
        uids.add(shared["metadata"]["uid"])
        api.delete(kind, shared["metadata"]["name"], tenant)
    assert release.lose_lease() == 1
    # Whoever takes over looks for what the runs that it finds need. A Secret cannot be looked for without the right to
    # read it: it is made again before the next run that mounts it.
    eventually(partial(long.children, "Service"), "the Service made again by the second replica", seconds=90)
    # The full lists come on time, and a run whose label was taken off is looked for by its name.
    (job,) = long.jobs("pretrain")
    bare = {"metadata": {"labels": {names.LABEL_NAME: None}}}
    api.patch("Job", job["metadata"]["name"], bare, tenant)
    eventually(
        lambda: {*lists} <= used_anywhere(plane, release.user, mark, tenant),
        "the full lists of the second replica",
        seconds=60,
        every_seconds=0.5,
    )
    kubelet.script = loses_a_rank_once
    becomes(long, "Finished", "True", "Published")
    made_again = [shared for kind in ("Secret", "Service") for shared in long.children(kind)]
    assert len(made_again) == 2
    assert uids.isdisjoint(shared["metadata"]["uid"] for shared in made_again)


def used_anywhere(plane: ControlPlane, user: str, mark: int, tenant: str) -> set[Right]:
    """What was used, with the place of the tenant also where the whole cluster was asked."""
    did, _ = used(plane, user, mark)
    return {Right(tenant, right.group, right.resource, right.verb) for right in did}


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("where", ["whole cluster", "one namespace"])
def test_what_is_granted_is_what_is_used(
    plane: ControlPlane, kubelet: ScriptedKubelet, release: Release, tenant: str, where: str
) -> None:
    kubelet.script = waits_in_pretraining
    namespaces = [tenant] if where == "one namespace" else []
    features = {"jobSet": True, "kueue": True}
    release.install(
        {"namespaces": namespaces, "features": features, "replicas": 2, "operator": {"resyncSeconds": 10}}
    )
    mark = plane.audit.mark()
    live_through_everything(plane, release, kubelet, tenant)
    release.stop_operator()
    allowed, (did, tried) = granted(plane, release.user), used(plane, release.user, mark)
    assert told(tried) == []
    if not namespaces:
        allowed, did = anywhere(allowed), anywhere(did)
    assert told(allowed - did) == [], "granted and not used"
    assert told(did - allowed) == [], "used and not granted"


@pytest.mark.usefixtures("others")
def test_default_chart_rights_suffice_and_a_jobset_profile_without_its_switch_is_refused(
    plane: ControlPlane, release: Release, tenant: str
) -> None:
    release.install({})
    mark = plane.audit.mark()
    plain = Adaptation(plane, tenant, make_profile(plane, storage=STORAGE), "plain")
    release.run_operator()
    becomes(plain, "Finished", "True", "Published")
    _, tried = used(plane, release.user, mark)
    assert told(tried) == ["list jobset.x-k8s.io/jobsets"]  # whether it may is found out by asking
    sets = Adaptation(plane, tenant, make_profile(plane, storage=STORAGE, launcher="JobSet"), "sets")
    becomes(sets, "Stalled", "True", "Refused")
    assert 'cannot create resource "jobsets"' in sets.condition("Stalled")["message"]
    release.install({"features": {"jobSet": True}})
    release.run_operator()
    becomes(sets, "Stalled", "False", "Progressing")


def test_an_upgrade_leaves_running_pods_alone_and_uninstalling_leaves_the_definitions(
    plane: ControlPlane, kubelet: ScriptedKubelet, release: Release, tenant: str
) -> None:
    kubelet.script = stays_in("pretrain")
    notes = release.install({})
    assert "kubectl get adaptationprofiles" in notes
    long = Adaptation(plane, tenant, make_profile(plane, storage=STORAGE))
    release.run_operator()

    def uids() -> set[str]:
        return {pod["metadata"]["uid"] for pod in long.running("pretrain")}

    long.wait_for_run("pretrain", pods=2)
    before = uids()
    release.install({"operator": {"workers": 2}})
    release.run_operator()
    assert uids() == before
    release.stop_operator()
    release.uninstall()
    assert uids() == before
    assert long.phase == "Pretraining"
    release.install({})
    release.run_operator()
    kubelet.script = ends_well
    becomes(long, "Finished", "True", "Published")


def test_the_api_server_takes_every_object_of_the_chart(
    plane: ControlPlane, release: Release, tenant: str
) -> None:
    policy = {"enabled": True, "apiServer": {"cidrs": ["10.96.0.1/32"]}}
    said = release.install({"namespaces": [tenant], "networkPolicy": policy, "features": {"kueue": True}})
    assert f"manages DomainAdaptations in {tenant}." in said
    networks = {"api_version": "networking.k8s.io/v1"}
    assert len(plane.api.list("NetworkPolicy", tenant, **networks)) == 3
    assert len(plane.api.list("NetworkPolicy", "dapt-system", **networks)) == 1

    def pods() -> list[dict[str, Any]]:
        found = plane.api.list("Pod", "dapt-system", labels="app.kubernetes.io/name=dapt")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    (pod,) = eventually(pods, "the operator's pod where Restricted is enforced")
    assert pod["spec"]["serviceAccountName"] == "dapt"
    (token,) = [item for item in pod["spec"]["volumes"] if item["name"].startswith("kube-api-access")]
    assert token["projected"]["sources"][0]["serviceAccountToken"]["path"] == "token"


def test_the_api_server_takes_unusual_values(release: Release) -> None:
    release.install(UNUSUAL | {"crds": {"install": True}})
    (deployment,) = release.plane.api.list("Deployment", "dapt-system", labels="example.com/cost-centre=4711")
    spec = deployment["spec"]["template"]["spec"]
    assert spec["dnsConfig"] == UNUSUAL["dnsConfig"]
    assert spec["tolerations"][-3:] == UNUSUAL["tolerations"]


def may(plane: ControlPlane, user: str, verb: str, resource: str, namespace: str) -> bool:
    """What the API server's authorizer says."""
    kind, _, subresource = resource.partition("/")
    attributes = {"group": "dapt.dev", "resource": kind, "subresource": subresource}
    question = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "resourceAttributes": attributes | {"verb": verb, "namespace": namespace},
        },
    }
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(plane.api.request("POST", path, question)["status"]["allowed"])


def test_the_clusters_own_roles_learn_of_adaptations(
    plane: ControlPlane, release: Release, tenant: str
) -> None:
    release.install({})
    group = {"apiGroup": "rbac.authorization.k8s.io"}
    for role in ("edit", "view"):
        plane.api.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": tenant},
                "roleRef": {**group, "kind": "ClusterRole", "name": role},
                "subjects": [{**group, "kind": "User", "name": role}],
            }
        )
        # The controller-manager gathers the rules of these roles.
        eventually(partial(may, plane, role, "list", "domainadaptations", tenant), f"{role} gathered")
    eventually(lambda: may(plane, "edit", "create", "domainadaptations", tenant), "edit gathered")
    assert may(plane, "edit", "delete", "domainadaptations", tenant)
    assert not may(plane, "edit", "create", "domainadaptations", "default")
    assert not may(plane, "edit", "update", "domainadaptations/status", tenant)
    assert not may(plane, "edit", "create", "adaptationprofiles", "")
    assert not may(plane, "view", "create", "domainadaptations", tenant)


def test_definitions_that_are_there_already_are_handed_over_or_left(
    plane: ControlPlane, release: Release
) -> None:
    for kind in ("domainadaptations", "adaptationprofiles"):
        plane.api.delete("CustomResourceDefinition", f"{kind}.{names.GROUP}")
        eventually(
            partial(
                lambda kind: plane.api.find("CustomResourceDefinition", f"{kind}.{names.GROUP}") is None, kind
            ),
            "it gone",
        )
    plane.install_crds()
    with pytest.raises(HelmError, match="invalid ownership metadata"):
        release.install({})
    name = f"domainadaptations.{names.GROUP}"

    def short_names() -> list[str]:
        return plane.api.get("CustomResourceDefinition", name)["spec"]["names"]["shortNames"]

    plane.api.patch("CustomResourceDefinition", name, {"spec": {"names": {"shortNames": ["old"]}}})
    release.install({"crds": {"install": False}})
    assert short_names() == ["old"]
    release.install({}, "--take-ownership")
    assert short_names() == ["da"]  # what an older version left is brought up to date
    # The same when a release comes back to definitions that it left behind.
    release.uninstall()
    plane.api.patch("CustomResourceDefinition", name, {"spec": {"names": {"shortNames": ["old"]}}})
    release.install({})
    assert short_names() == ["da"]
    found = plane.api.get("CustomResourceDefinition", name)
    assert found["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
