"""Adaptations in a queue, with the real Kueue: it alone decides when a stage starts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from support.builders import checkpoint
from testcluster.adaptations import (
    STAGES,
    Adaptation,
    healthy,
    make_claim,
    make_profile,
    stays_in,
    trains,
)
from testcluster.control_plane import ControlPlane
from testcluster.controllers import lacking
from testcluster.jobset import jobset
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.kueue import Queues, kueue
from testcluster.kueue_sentences import FILE, SITUATIONS, Situation, told
from testcluster.pod_life import Life
from testcluster.release import Release
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def control_plane() -> Iterator[ControlPlane]:
    """One of its own: Kueue has a say in every Job and pod of its cluster."""
    why = lacking("kueue", "jobset")
    if why:
        pytest.skip(why)
    with ControlPlane() as plane, jobset(plane), kueue(plane):
        plane.install_crds()
        yield plane


@pytest.fixture(scope="module")
def release(control_plane: ControlPlane) -> Iterator[Release]:
    """The operator for the whole cluster, with what the chart grants and no more."""
    with Release(control_plane) as made:
        made.install({"crds": {"install": False}, "features": {"kueue": True, "jobSet": True}})
        made.run_operator()
        yield made


@pytest.fixture
def place(control_plane: ControlPlane, release: Release, namespace: str) -> str:
    """The test's namespace, with a work volume."""
    make_claim(control_plane, namespace)
    return namespace


@pytest.fixture
def queue(control_plane: ControlPlane, place: str) -> Queues:
    """The queue `team` of the test's namespace, with four GPUs: as many as pretraining needs."""
    made = Queues(control_plane, place)
    made.create({GPU: "4"})
    return made


def quota(adaptation: Adaptation) -> tuple[str, str]:
    condition = adaptation.condition("QuotaReserved")
    return (condition.get("status", ""), condition.get("reason", ""))


def stalled(adaptation: Adaptation) -> tuple[str, str]:
    condition = adaptation.condition("Stalled")
    return (condition.get("status", ""), condition.get("reason", ""))


def waits_for(adaptation: Adaptation, stage: str, words: str) -> str:
    """Until the stage waits for quota with these words; the condition's message."""

    def look(one: Adaptation) -> str:
        message = str(one.condition("QuotaReserved").get("message"))
        is_it = quota(one) == ("False", "WaitingForQuota") and stage in message and words in message
        return message if is_it else ""

    return str(adaptation.wait(look, f"{stage} waits with the words {words!r}"))


def ask(plane: ControlPlane, namespace: str, gpus: int, name: str = "other") -> str:
    """Somebody else's Job in the same queue."""
    container = {"name": "main", "image": "registry.example/none", "resources": {"limits": {GPU: str(gpus)}}}
    plane.api.create(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "labels": {"kueue.x-k8s.io/queue-name": "team"}},
            "spec": {
                "suspend": True,
                "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
            },
        },
        namespace,
    )
    return name


def hold(plane: ControlPlane, namespace: str, gpus: int) -> str:
    """Somebody else's Job in the same queue, admitted."""
    name = ask(plane, namespace, gpus)
    eventually(lambda: not plane.api.get("Job", name, namespace)["spec"]["suspend"], "the other's admission")
    return name


def test_a_stage_waits_for_quota_and_starts_when_it_is_granted(
    control_plane: ControlPlane, place: str, queue: Queues, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    other = hold(control_plane, place, 2)
    adaptation = Adaptation(control_plane, place, make_profile(control_plane), queue="team")
    message = waits_for(adaptation, "pretrain", "insufficient unused quota")
    assert adaptation.jobs("pretrain")[-1]["spec"]["suspend"] is True
    assert f"insufficient unused quota for {GPU} in flavor {queue.cluster_queue}" in message
    assert adaptation.condition("Reconciling")["reason"] == "WaitingForQuota"
    assert stalled(adaptation)[0] == "False"

    control_plane.api.delete("Job", other, place)
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]
    eventually(lambda: queue.used() == {GPU: "0"}, "all quota given back")


def test_stage_larger_than_the_queue_stalls_until_the_queue_grows(
    control_plane: ControlPlane, place: str, queue: Queues, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    queue.set_quota({GPU: "3"})
    adaptation = Adaptation(control_plane, place, make_profile(control_plane), queue="team")
    adaptation.wait(lambda one: stalled(one) == ("True", "QuotaTooSmall"), "QuotaTooSmall")
    message = adaptation.condition("Stalled")["message"]
    assert "pretrain" in message
    assert "team" in message
    assert "current podset request (4) > maximum capacity (3)" in message
    assert quota(adaptation)[0] == "False"
    assert adaptation.condition("Ready")["status"] == "False"

    queue.set_quota({GPU: "4"})
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]


def test_unknown_queue_stalls_until_it_is_created(
    control_plane: ControlPlane, place: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    adaptation = Adaptation(control_plane, place, make_profile(control_plane), queue="team")
    adaptation.wait(lambda one: stalled(one) == ("True", "QuotaTooSmall"), "QuotaTooSmall")
    assert "LocalQueue team doesn't exist" in adaptation.condition("Stalled")["message"]

    Queues(control_plane, place).create({GPU: "4"})
    adaptation.wait_for_phase("Published")


def test_adaptation_behind_others_in_a_strict_fifo_queue_reports_its_wait(
    control_plane: ControlPlane, place: str, queue: Queues, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    queue.set_quota({GPU: "4"}, queueingStrategy="StrictFIFO")
    hold(control_plane, place, 2)
    before_us = ask(control_plane, place, 4, "before-us")
    eventually(lambda: len(queue.workloads()) == 2, "two workloads")
    adaptation = Adaptation(control_plane, place, make_profile(control_plane), queue="team")
    # Workloads of the same second have no order, so a stage or two may slip through.
    waits_for(adaptation, "waits for quota", "the queue has not considered it yet: a queue of strict order")
    control_plane.api.delete("Job", before_us, place)
    waits_for(adaptation, "pretrain", "insufficient unused quota")


def test_suspension_releases_the_quota_and_resuming_requests_it_again(
    control_plane: ControlPlane, place: str, queue: Queues, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = stays_in("pretrain")
    adaptation = Adaptation(control_plane, place, make_profile(control_plane), queue="team")
    adaptation.wait_for_run("pretrain", pods=2)
    eventually(lambda: queue.used() == {GPU: "4"}, "the gang's quota")
    assert quota(adaptation) == ("True", "QuotaGranted")

    adaptation.patch(suspend=True)
    adaptation.wait_for_phase("Suspended")
    eventually(lambda: queue.used() == {GPU: "0"}, "the quota given back")
    other = hold(control_plane, place, 4)

    adaptation.patch(suspend=False)
    waits_for(adaptation, "pretrain", "insufficient unused quota")
    assert not adaptation.running("pretrain")
    control_plane.api.delete("Job", other, place)
    adaptation.wait_for_run("pretrain", pods=2)
    kubelet.script = healthy
    adaptation.wait_for_phase("Published")
    assert ("pretrain", 2) in adaptation.runs()
    assert adaptation.status["usage"]["restarts"] == 0


def test_what_kueue_takes_back_it_gives_again(
    control_plane: ControlPlane, place: str, queue: Queues, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = stays_in("pretrain")
    adaptation = Adaptation(control_plane, place, make_profile(control_plane), queue="team")
    adaptation.wait_for_run("pretrain", pods=2)
    queue.set_quota({GPU: "4"}, stopPolicy="HoldAndDrain")
    adaptation.wait(lambda one: not one.running("pretrain"), "the end of the gang's pods")
    adaptation.wait(lambda one: quota(one)[0] == "False", "the wait for quota")
    eventually(lambda: queue.used() in ({}, {GPU: "0"}), "the quota taken back")

    queue.set_quota({GPU: "4"}, stopPolicy="None")
    adaptation.wait_for_run("pretrain", pods=2)
    kubelet.script = healthy
    adaptation.wait_for_phase("Published")
    assert adaptation.status["usage"]["restarts"] == 0


def test_priority_takes_the_quota_from_those_of_less(
    control_plane: ControlPlane, place: str, queue: Queues, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    urgent = f"{place}-urgent"
    control_plane.api.create(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": urgent},
            "value": 1000,
        }
    )
    queue.set_quota({GPU: "4"}, preemption={"withinClusterQueue": "LowerPriority"})
    other = hold(control_plane, place, 4)
    profile = make_profile(control_plane, limits={"priorityClasses": [urgent]})
    adaptation = Adaptation(control_plane, place, profile, queue="team", priorityClassName=urgent)
    adaptation.wait_for_phase("Published")
    evictions = [
        condition["message"]
        for workload in queue.workloads()
        if workload["metadata"]["ownerReferences"][0]["name"] == other
        for condition in workload["status"]["conditions"]
        if condition["type"] == "Preempted"
    ]
    assert len(evictions) == 1
    assert (
        "Preempted to accommodate a workload" in evictions[0]
    )  # "Previously: ..." once it has its quota back
    control_plane.api.delete("PriorityClass", urgent)


def test_jobsets_wait_in_the_queue_as_jobs_do(
    control_plane: ControlPlane, place: str, queue: Queues, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = healthy
    other = hold(control_plane, place, 2)
    profile = make_profile(control_plane, launcher="JobSet")
    adaptation = Adaptation(control_plane, place, profile, queue="team")
    waits_for(adaptation, "pretrain", "insufficient unused quota")
    control_plane.api.delete("Job", other, place)
    adaptation.wait_for_phase("Published")
    assert adaptation.runs() == [(stage, 1) for stage in STAGES]
    owners = {item["metadata"]["ownerReferences"][0]["kind"] for item in queue.workloads()}
    assert owners <= {"JobSet", "Job"}
    eventually(lambda: queue.used() == {GPU: "0"}, "all quota given back")


def test_parallel_evaluations_wait_in_the_queue_independently_of_pretraining(
    control_plane: ControlPlane, place: str, queue: Queues, kubelet: ScriptedKubelet
) -> None:
    """Each has a Workload of its own: pretraining keeps its quota, and they take what is left when it comes."""
    kubelet.script = trains([checkpoint(10, 2.9), checkpoint(20, 2.8)], lambda _: Life())
    profile = make_profile(control_plane, evaluation={"concurrency": 2})
    beside: dict[str, Any] = {"evaluation": {"when": "everyCheckpoint"}}
    adaptation = Adaptation(control_plane, place, profile, queue="team", **beside)

    def held() -> dict[str, bool]:
        """Stage and candidate of each Job with a Workload, and whether it has its quota."""
        found = {}
        owners = {item["metadata"]["ownerReferences"][0]["name"]: item for item in queue.workloads()}
        for job in adaptation.jobs("pretrain") + adaptation.jobs("evaluate"):
            labels = job["metadata"]["labels"]
            if (owned := owners.get(job["metadata"]["name"])) is not None:
                name = labels.get("dapt.dev/candidate", labels["dapt.dev/stage"])
                conditions = owned.get("status", {}).get("conditions") or []
                found[name] = any(
                    one["type"] == "QuotaReserved" and one["status"] == "True" for one in conditions
                )
        return found

    wanted = {"pretrain": True, "a1-s10": False, "a1-s20": False}
    eventually(lambda: held() == wanted, "two Workloads that wait beside pretraining's", seconds=60)
    assert len(adaptation.running("pretrain")) == 2
    assert quota(adaptation) == ("True", "QuotaGranted")
    assert stalled(adaptation)[0] == "False"

    queue.set_quota({GPU: "5"})
    # Workloads of the same second have no order: it may be either.
    eventually(lambda: sum(held().values()) == 2, "quota for one of them", seconds=60)
    eventually(lambda: len(adaptation.running("evaluate")) == 1, "its pod")
    assert len(adaptation.running("pretrain")) == 2
    kubelet.script = healthy
    adaptation.wait_for_phase("Published")
    assert len(adaptation.jobs("pretrain")) == 1
    eventually(lambda: queue.used() == {GPU: "0"}, "all quota given back")


RECORDED: list[dict[str, Any]] = YAML(typ="safe").load(FILE.read_text())


def test_every_situation_is_recorded() -> None:
    assert [item["name"] for item in RECORDED] == [situation.name for situation in SITUATIONS]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda item: item.name)
def test_the_recorded_sentences_are_kueues_own(control_plane: ControlPlane, situation: Situation) -> None:
    (recorded,) = (item for item in RECORDED if item["name"] == situation.name)
    found = told(control_plane, situation)
    # Kueue looks at resources in no order, and at no further one after the first that can never fit.
    said, known = reasons(found.pop("message")), reasons(recorded["message"])
    assert said <= known
    assert {one for one in known if "maximum capacity" in one} <= said
    assert found == {name: value for name, value in recorded.items() if name != "message"}


def reasons(message: str | None) -> set[str]:
    """The parts of a sentence of Kueue's, one for each resource."""
    return set(re.split(r", (?=insufficient )", message or ""))
