"""The adapter's five verbs, its resync and its Lease on a real API server."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from dapt_contract.pod.progress import Progress
from dapt_operator.api.names import work_claim_name
from dapt_operator.cluster.errors import CannotCreateError, ConflictError, NameTakenError
from dapt_operator.cluster.kubernetes import KubernetesCluster, Leadership, Store
from dapt_operator.cluster.kubernetes import lease as lease_module
from dapt_operator.cluster.kubernetes.kubeconfig import load_kubeconfig
from dapt_operator.cluster.port import Event, Key, ObjectReference
from dapt_operator.launchers import LAUNCHERS, all_states, indexed_job
from dapt_operator.reconcile import signing_secret
from dapt_operator.stage_run import Owner, StageRun, plain
from dapt_operator.testing.objects import Ends
from support.api_double import Line
from support.launch_builders import profile, stage_run
from testcluster.adaptations import Adaptation
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.pod_life import Life
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster


class World:
    """An adaptation, and the adapter that is told of it by its own lists alone: there is no watch."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        self.adaptation = Adaptation(plane, namespace, "none")
        self.key = Key(namespace, self.adaptation.name)
        self.owner = Owner(namespace, self.adaptation.name, self.adaptation.uid)
        self.store = Store()
        self.woken: list[Key] = []
        self.cluster = KubernetesCluster(
            load_kubeconfig({"KUBECONFIG": str(plane.kubeconfig)}),
            self.store,
            on_change=self.woken.append,
            namespaces=(namespace,),
        )
        self.cluster.resync()

    def render(self, run: StageRun | None = None, **template: Any) -> list[dict[str, Any]]:
        """ConfigMap and Job, mounting nothing that is not there."""
        run = run or stage_run(nodes=2, of=self.owner)
        return [plain(item) for item in indexed_job.render(run, profile(podTemplate=template), self.owner)]

    def start(self, run: StageRun | None = None) -> dict[str, Any]:
        """Create a run with all that its pods need; the Job."""
        for manifest in indexed_job.shared(profile(), self.owner, 2):
            self.cluster.apply(self.key, manifest)
        config, job = self.render(run)
        self.cluster.apply(self.key, config)
        self.cluster.apply(self.key, job)
        self.bind_claim()
        return job

    def bind_claim(self) -> None:
        """A volume for the work claim."""
        claim = work_claim_name(self.owner.name, self.owner.uid)
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{self.namespace}-{claim}"},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "capacity": {"storage": "1Ti"},
                "hostPath": {"path": "/nowhere"},
                "claimRef": {"namespace": self.namespace, "name": claim},
            },
        }
        self.plane.api.apply(volume)

    def pods(self) -> list[dict[str, Any]]:
        """As the adapter sees them after a resync."""
        self.cluster.resync()
        return [dict(pod) for pod in self.cluster.observe(self.key).children.pods]

    @property
    def version(self) -> str:
        resource = self.cluster.observe(self.key).resource
        assert resource is not None
        return str(resource["metadata"]["resourceVersion"])


def watch(world: World, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What happens to objects of this kind from now on."""
    connection = load_kubeconfig({"KUBECONFIG": str(world.plane.kubeconfig)})
    url = f"{connection.server}{world.plane.api.path(kind, world.namespace)}?watch=true&timeoutSeconds=30"
    answer = connection.pool(1).request("GET", url, preload_content=False, timeout=60)
    for line in answer:
        event = json.loads(line)
        yield event["type"], event["object"]


def last_words(pod: Any) -> str:
    """The termination message of a pod that has ended."""
    states = [item["state"] for item in pod["status"].get("containerStatuses") or []]
    return next((state["terminated"].get("message", "") for state in states if "terminated" in state), "")


@pytest.fixture
def world(control_plane: ControlPlane, namespace: str) -> Iterator[World]:
    made = World(control_plane, namespace)
    yield made
    made.cluster.close()


def test_doing_it_twice_is_doing_it_once(world: World) -> None:
    objects = [
        signing_secret(world.owner, bytes(32)), *indexed_job.shared(profile(), world.owner, 2), *world.render(),
    ]  # fmt: skip
    for manifest in objects:
        world.cluster.apply(world.key, manifest)
    first = {kind: world.adaptation.children(kind) for kind in _KINDS}
    for manifest in objects:
        world.cluster.apply(world.key, manifest)
    second = {kind: world.adaptation.children(kind) for kind in _KINDS}
    assert {kind: len(found) for kind, found in first.items()} == dict.fromkeys(_KINDS, 1)
    uids = [item["metadata"]["uid"] for found in second.values() for item in found]
    assert uids == [item["metadata"]["uid"] for found in first.values() for item in found]
    for kind in ("Service", "ConfigMap", "Secret"):
        assert versions(first[kind]) == versions(second[kind]), f"an equal {kind} is not written again"
    for kind in ("Service", "PersistentVolumeClaim"):
        (entry,) = [
            item for item in second[kind][0]["metadata"]["managedFields"] if item["manager"] == "dapt"
        ]
        assert entry["operation"] == "Apply"


_KINDS = ("Secret", "ConfigMap", "Service", "PersistentVolumeClaim", "Job")


def versions(found: list[dict[str, Any]]) -> list[str]:
    return [item["metadata"]["resourceVersion"] for item in found]


def test_foreign_job_and_config_map_are_reported_and_left(world: World) -> None:
    for manifest in world.render():
        theirs = plain(manifest)
        theirs["metadata"] = {"name": manifest["metadata"]["name"]}
        placed = world.plane.api.create(theirs, world.namespace)
        with pytest.raises(NameTakenError) as raised:
            world.cluster.apply(world.key, manifest)
        name, kind = manifest["metadata"]["name"], manifest["kind"]
        assert str(raised.value) == (
            f"{kind} {name} exists already and is not this adaptation's: it has no owner"
        )
        world.cluster.delete(world.key, ObjectReference(kind, name))
        found = world.plane.api.get(kind, name, world.namespace)
        assert found["metadata"]["uid"] == placed["metadata"]["uid"]
    assert world.cluster.observe(world.key).children.jobs == ()


def test_config_map_recreated_with_other_content_is_reported(world: World) -> None:
    config, _ = world.render()
    world.plane.api.create(config | {"data": {"stage.json": "{}"}})
    with pytest.raises(NameTakenError, match="its content is not what was written"):
        world.cluster.apply(world.key, config)


def test_a_claim_whose_template_changed_serves_as_it_is(world: World) -> None:
    claim = plain(indexed_job.shared(profile(), world.owner, 1)[0])
    world.cluster.apply(world.key, claim)
    claim["spec"]["accessModes"] = ["ReadWriteOnce"]
    world.cluster.apply(world.key, claim)
    (found,) = world.adaptation.children("PersistentVolumeClaim")
    assert found["spec"]["accessModes"] == ["ReadWriteMany"]


def test_object_quota_is_reported_with_the_message_of_the_server(world: World) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": world.namespace},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    world.plane.api.create(quota)
    eventually(lambda: world.plane.api.get("ResourceQuota", "few", world.namespace)["status"].get("used"))
    with pytest.raises(
        CannotCreateError, match=r"^the cluster refuses Job .*: exceeded quota: few, requested: count/"
    ):
        world.cluster.apply(world.key, world.render()[1])


def test_a_status_is_written_at_its_version_alone(world: World) -> None:
    before = world.version
    world.cluster.write_status(world.key, {"phase": "Preparing"}, before)
    assert world.version != before
    assert world.adaptation.phase == "Preparing"
    with pytest.raises(ConflictError, match="the object has been modified"):
        world.cluster.write_status(world.key, {"phase": "Training"}, before)
    world.adaptation.patch(suspend=True)
    with pytest.raises(ConflictError):
        world.cluster.write_status(world.key, {"phase": "Training"}, world.version)
    resource = world.cluster.observe(world.key).resource
    assert resource is not None
    assert resource["spec"]["suspend"] is True, "the newest is known after a conflict"
    world.cluster.write_status(world.key, {"phase": "Training"}, world.version)
    assert world.adaptation.phase == "Training"
    assert world.adaptation.resource["spec"]["suspend"] is True, "a status says nothing of the spec"
    metadata = world.adaptation.resource["metadata"]
    assert "finalizers" not in metadata
    assert "annotations" not in metadata


def test_the_status_of_a_successor_is_not_written(world: World) -> None:
    before = world.version
    world.plane.api.delete("DomainAdaptation", world.key.name, world.namespace)
    with pytest.raises(ConflictError, match="is gone"):
        world.cluster.write_status(world.key, {"phase": "Training"}, before)
    assert world.cluster.observe(world.key).resource is None
    successor = Adaptation(world.plane, world.namespace, "none")
    with pytest.raises(ConflictError):
        world.cluster.write_status(world.key, {"phase": "Training"}, before)
    assert successor.status["observedGeneration"] == -1  # as the API server makes it
    assert "phase" not in successor.status


def test_an_event_is_readable_by_kubectl(world: World) -> None:
    world.cluster.record(world.key, Event("Warning", "StageFailed", "pretrain failed: no space left"))
    world.cluster.record(world.key, Event("Normal", "Long", 3000 * "ä"))
    command = ["kubectl", "--kubeconfig", str(world.plane.kubeconfig), "-n", world.namespace]
    shown = subprocess.run(
        [*command, "describe", "domainadaptation", world.key.name], capture_output=True, text=True, check=True
    ).stdout
    assert "StageFailed" in shown.partition("Events:")[2]
    assert "pretrain failed: no space left" in shown
    listed = json.loads(
        subprocess.run(
            [*command, "events", "--for", f"domainadaptation/{world.key.name}", "-o", "json"],
            capture_output=True, text=True, check=True,
        ).stdout
    )["items"]  # fmt: skip
    assert {(item["type"], item["reason"], item["source"]["component"]) for item in listed} == {
        ("Warning", "StageFailed", "dapt"),
        ("Normal", "Long", "dapt"),
    }


def test_deleted_job_stays_until_its_pods_have_ended(world: World, kubelet: ScriptedKubelet) -> None:
    saved = Ends(exit_code=143, message="asked to stop; step 7 is saved")
    kubelet.script = lambda pod: Life(on_stop=saved, stop_seconds=1.0)
    job = world.start()
    name = job["metadata"]["name"]
    eventually(lambda: [pod["status"]["phase"] for pod in world.pods()] == ["Running", "Running"])
    world.cluster.delete(world.key, ObjectReference("Job", name))
    world.cluster.delete(world.key, ObjectReference("Job", name))
    stored = world.plane.api.get("Job", name, world.namespace)
    assert stored["metadata"]["finalizers"] == ["foregroundDeletion"]

    said: list[str] = []
    for kind, pod in watch(world, "Pod"):
        world.store.remove(pod) if kind == "DELETED" else world.store.put(pod)
        children = world.cluster.observe(world.key).children
        assert len(children.jobs) == 1
        said = [message for item in children.pods if (message := last_words(item))]
        if len(said) == 2 and not world.adaptation.children("Pod"):
            break
    assert ["step 7 is saved" in words for words in said] == [True, True]
    eventually(lambda: world.plane.api.find("Job", name, world.namespace) is None, "the Job's end")
    world.cluster.resync()
    assert world.cluster.observe(world.key).children.jobs == ()
    assert world.cluster.observe(world.key).children.pods == ()


def test_a_peer_can_be_killed_at_once(world: World, kubelet: ScriptedKubelet) -> None:
    kubelet.script = lambda pod: Life(stop_seconds=3600)
    world.start()
    eventually(lambda: len([pod for pod in world.pods() if pod["status"]["phase"] == "Running"]) == 2)
    name = world.pods()[1]["metadata"]["name"]
    world.cluster.delete(world.key, ObjectReference("Pod", name, grace_seconds=0))
    assert world.plane.api.find("Pod", name, world.namespace) is None or eventually(
        lambda: world.plane.api.find("Pod", name, world.namespace) is None
    )


def test_what_is_kept_of_objects_is_enough_for_the_states(world: World, kubelet: ScriptedKubelet) -> None:
    kubelet.script = lambda pod: Ends(exit_code=77, message="diverged") if pod.index else Life()
    world.start()
    eventually(lambda: [pod for pod in world.pods() if pod["status"]["phase"] == "Failed"])
    observed = world.cluster.observe(world.key)
    raw = observed.children.__class__(
        jobs=tuple({"kind": "Job"} | job for job in world.adaptation.children("Job")),
        pods=tuple({"kind": "Pod"} | pod for pod in world.adaptation.children("Pod")),
    )
    kept = all_states(observed.children, observed.now, LAUNCHERS)
    whole = all_states(raw, observed.now, LAUNCHERS)
    assert len(kept) == 1
    assert (kept[0].phase, kept[0].cause, kept[0].message) == (
        whole[0].phase,
        whole[0].cause,
        whole[0].message,
    )
    assert (kept[0].created, kept[0].started) == (whole[0].created, whole[0].started)


def test_a_live_reading_wakes_the_adaptation(world: World, kubelet: ScriptedKubelet) -> None:
    kubelet.script = lambda pod: (
        Life()
        if pod.stage is None
        else Life(progress=Progress(run_key=pod.stage.run.key, stage=pod.stage.run.stage, fraction=0.5))
    )
    job = world.start()
    eventually(lambda: len([pod for pod in world.pods() if pod["status"]["phase"] == "Running"]) == 2)
    eventually(lambda: world.woken == [world.key], "the wake")
    reading = world.cluster.observe(world.key).children.progress[job["metadata"]["name"]]
    assert reading.fraction == 0.5


def test_the_log_of_a_failed_pod_is_read_through_the_kubelet(world: World, kubelet: ScriptedKubelet) -> None:
    kubelet.script = lambda pod: Life(then=Ends(exit_code=77), log="step 1\nloss is not finite\n")
    world.start()
    eventually(lambda: [pod for pod in world.pods() if pod["status"]["phase"] == "Failed"])
    logs = eventually(lambda: world.cluster.observe(world.key).children.logs, "the lines")
    assert set(logs.values()) == {("step 1", "loss is not finite")}


def test_resync_finds_a_deletion_that_no_watch_reported(world: World) -> None:
    config, suspended = world.render()
    # Without pods: the garbage collector would delete them at any moment after the Job, which is one more change.
    suspended["spec"]["suspend"] = True
    world.cluster.apply(world.key, config)
    world.cluster.apply(world.key, suspended)
    (job,) = eventually(lambda: [job for job in world.adaptation.children("Job") if job["status"]])
    world.cluster.resync()
    assert world.cluster.resync() == set()
    world.plane.api.delete("Job", job["metadata"]["name"], world.namespace)
    eventually(lambda: world.adaptation.children("Job") == [])
    assert len(world.cluster.observe(world.key).children.jobs) == 1, "nobody told"
    assert world.cluster.resync() == {world.key}
    assert world.cluster.observe(world.key).children.jobs == ()
    other = Adaptation(world.plane, world.namespace, "none", name="other")
    assert world.cluster.resync() == {Key(world.namespace, "other")}
    world.plane.api.delete("DomainAdaptation", other.name, world.namespace)
    assert world.cluster.resync() == {Key(world.namespace, "other")}


def test_recreated_resource_does_not_see_the_children_of_its_predecessor(world: World) -> None:
    config, job = world.render()
    job["metadata"]["finalizers"] = ["example.dev/stays"]
    world.cluster.apply(world.key, config)
    world.cluster.apply(world.key, job)
    world.plane.api.delete("DomainAdaptation", world.key.name, world.namespace)
    successor = Adaptation(world.plane, world.namespace, "none")
    world.cluster.resync()
    observed = world.cluster.observe(world.key)
    assert observed.resource is not None
    assert observed.resource["metadata"]["uid"] == successor.uid
    assert observed.children.jobs == ()
    assert len(world.adaptation.children("Job")) == 1
    world.plane.api.patch("Job", job["metadata"]["name"], {"metadata": {"finalizers": None}}, world.namespace)


# --- the Lease ---


@pytest.fixture
def leaderships(control_plane: ControlPlane) -> Iterator[Callable[[str, str], Leadership]]:
    made: list[Leadership] = []

    def make(namespace: str, identity: str) -> Leadership:
        connection = load_kubeconfig({"KUBECONFIG": str(control_plane.kubeconfig)})
        made.append(Leadership(connection, namespace, "dapt", identity))
        return made[-1]

    yield make
    for leadership in made:
        leadership.stop()


def test_a_dead_holders_lease_is_taken_over_and_never_held_by_two(
    control_plane: ControlPlane,
    namespace: str,
    leaderships: Callable[[str, str], Leadership],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(lease_module, "WRITE_SECONDS", 1.0)
    monkeypatch.setattr(lease_module, "DURATION_SECONDS", 2)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease_module, "ASK_SECONDS", 0.1)
    line = Line()
    connection = load_kubeconfig({"KUBECONFIG": str(control_plane.kubeconfig)})
    first = Leadership(replace(connection, authorization=line), namespace, "dapt", "first")
    second = leaderships(namespace, "second")
    request.addfinalizer(first.stop)
    both_at_once: list[bool] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            both_at_once.append(first.is_held() and second.is_held())

    watcher = threading.Thread(target=look)
    watcher.start()
    first.start(lambda: None)
    assert first.wait(30)
    second.start(lambda: None)
    lease = control_plane.api.get("Lease", "dapt", namespace)
    assert lease["spec"]["holderIdentity"] == "first"
    renewed = lease["spec"]["renewTime"]
    eventually(lambda: control_plane.api.get("Lease", "dapt", namespace)["spec"]["renewTime"] != renewed)
    assert not second.is_held()
    line.is_cut = True  # for the other one it has died
    assert second.wait(30)
    over.set()
    watcher.join()
    assert len(both_at_once) > 100
    assert not any(both_at_once)
    spec = control_plane.api.get("Lease", "dapt", namespace)["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 1)


def test_a_lease_that_is_given_back_is_free_at_once(
    control_plane: ControlPlane, namespace: str, leaderships: Callable[[str, str], Leadership]
) -> None:
    first, second = leaderships(namespace, "first"), leaderships(namespace, "second")
    first.start(lambda: None)
    assert first.wait(30)
    second.start(lambda: None)
    first.stop()
    assert not control_plane.api.get("Lease", "dapt", namespace)["spec"].get("holderIdentity") or second.wait(
        30
    )
    assert second.wait(30)
