"""Tests which cached objects reach the planner: those of our own runs, although labels can be copied and removed."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_operator.cluster.kubernetes import ApiError
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.own_children import ChildrenFilter, open_run_names
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.port import ObjectReference
from dapt_operator.launchers import all_states, jobset, orphan_pods
from dapt_operator.stage_run import RunPhase, plain
from support.api_double import Adapter, Odd
from support.cluster_objects import KEY, adaptation, job, pod, stored
from support.launch_builders import owner, profile, stage_run

RUN = stage_run(nodes=2)
OPEN = {"ledger": {"runs": [{"stage": "publish", "kind": "publish", "fence": 1}]}}
"""Status in which `RUN` is not known to have ended."""
JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/health/jobsets"


@pytest.fixture(autouse=True)
def _resource(adapter: Adapter) -> None:
    adapter.add_resource(adaptation())


def job_path(name: str) -> str:
    return KINDS["Job"].path("health", name)


def job_set() -> dict[str, Any]:
    return stored(plain(jobset.render(RUN, profile(), owner())[-1]), uid="set-1") | {"status": {}}


def child_of(job_set: dict[str, Any], uid: str = "child-1") -> dict[str, Any]:
    """The Job that a JobSet has created, without a label of ours."""
    child = job(uid=uid, run=RUN)
    child["metadata"] |= {
        "name": f"{job_set['metadata']['name']}-n-0",
        "labels": {"jobset.sigs.k8s.io/jobset-name": job_set["metadata"]["name"]},
        "ownerReferences": [
            {
                "apiVersion": job_set["apiVersion"],
                "kind": "JobSet",
                "name": job_set["metadata"]["name"],
                "uid": job_set["metadata"]["uid"],
                "controller": True,
            }
        ],
    }
    return child


def foreign_pod(of: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A pod with all labels of ours, of somebody else's Job."""
    found = pod(of, 0, uid="theirs", **changes)
    found["metadata"]["name"] = f"{of['metadata']['name']}-0-zzzzz"
    found["metadata"]["ownerReferences"][0]["uid"] = "self-made"
    return found


# --- pods ---


@pytest.mark.parametrize("name", ["theirs", "{job}-0-abcde-0-abcde", "{job}x-0", "{job}-0-ABCDE", "{job}"])
def test_pod_that_our_job_has_adopted_does_not_reach_the_planner(adapter: Adapter, name: str) -> None:
    """The Job controller adopts whatever has the labels of its pods; those that it makes have its name."""
    of = job(run=RUN)
    adapter.store.put(of)
    adapter.store.put(pod(of, 1))
    lives = pod(of, 0, uid="lives", address="10.0.0.9")
    adopted = pod(of, 0, uid="theirs", phase="Failed", ended={"exitCode": 64})
    for number, item in enumerate((lives, adopted)):
        item["metadata"]["name"] = name.format(job=of["metadata"]["name"]) + number * "-"
        adapter.store.put(item)
    assert adapter.store.targets() == ()
    children = adapter.cluster.observe(KEY).children
    assert [item["metadata"]["uid"] for item in children.pods] == [f"pod-{RUN.name}-1"]


def test_pod_of_another_job_does_not_reach_the_planner(adapter: Adapter) -> None:
    of = job(run=RUN)
    adapter.store.put(of)
    adapter.store.put(pod(of, 1))
    adapter.store.put(foreign_pod(of, phase="Failed", ended={"exitCode": 64}))
    children = adapter.cluster.observe(KEY).children
    assert [item["metadata"]["uid"] for item in children.pods] == [f"pod-{RUN.name}-1"]


def test_reading_of_another_pod_is_not_polled(adapter: Adapter) -> None:
    of = job(run=RUN)
    adapter.store.put(of)
    adapter.store.put(foreign_pod(of, address="10.0.0.9"))
    filtered = ChildrenFilter(ApiServerClient(adapter.double.connection()), adapter.store)
    assert (len(adapter.store.targets()), filtered.own_targets()) == (1, ())
    adapter.store.put(pod(of, 0, address="10.0.0.1"))
    assert [target.host for target in filtered.own_targets()] == ["10.0.0.1"]


def orphan(of: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """A pod that the garbage collector has left without an owner."""
    found = pod(of, 0, address="10.0.0.9")
    found["metadata"]["ownerReferences"] = []
    found["metadata"]["name"] = name or found["metadata"]["name"]
    return found


def test_pod_without_its_job_reaches_the_planner_as_an_orphan_and_can_be_deleted(adapter: Adapter) -> None:
    left = orphan(job(run=RUN))
    adapter.store.put(left)
    adapter.double.add(f"/api/v1/namespaces/health/pods/{left['metadata']['name']}", left)
    children = adapter.cluster.observe(KEY).children
    assert (children.pods, [item["metadata"]["uid"] for item in children.orphans]) == (
        (),
        [f"pod-{RUN.name}-0"],
    )
    assert [(one.name, one.identity) for one in orphan_pods(children)] == [
        (left["metadata"]["name"], RUN.identity)
    ]
    assert adapter.store.targets() == (), "no reading is polled"
    adapter.cluster.delete(KEY, ObjectReference("Pod", left["metadata"]["name"]))
    (request,) = adapter.double.sent("DELETE")
    assert request.body["preconditions"] == {"uid": left["metadata"]["uid"]}
    assert adapter.cluster.observe(KEY).children.orphans == ()


def test_pod_that_is_left_without_its_job_stays_known(adapter: Adapter) -> None:
    of = job(run=RUN)
    adapter.store.put(of)
    adapter.store.put(pod(of, 0, version=7))
    left = orphan(of)
    left["metadata"]["resourceVersion"] = "8"
    assert adapter.store.put(left) == KEY, "its adaptation is reconciled"
    assert len(adapter.cluster.observe(KEY).children.orphans) == 1


@pytest.mark.parametrize("name", ["theirs", f"{RUN.name}-0-abcde-debug", f"{RUN.name}x-0-abcde", RUN.name])
def test_pod_without_an_owner_under_another_name_is_not_ours(adapter: Adapter, name: str) -> None:
    assert adapter.store.put(orphan(job(run=RUN), name)) is None


def test_pods_of_a_jobset_that_was_deleted_without_them_reach_the_planner_as_orphans(
    adapter: Adapter,
) -> None:
    """Its Job stays and goes on, without an owner and without a label by which anybody would find it."""
    of = job_set()
    child = child_of(of)
    adapter.double.add(job_path(child["metadata"]["name"]), child)
    adapter.store.put(of)
    left = pod(child, 1)
    adapter.store.put(left)
    adapter.double.add(f"/api/v1/namespaces/health/pods/{left['metadata']['name']}", left)
    children = adapter.cluster.observe(KEY).children
    assert (len(children.pods), children.orphans) == (1, ())
    adapter.store.remove(of)
    children = adapter.cluster.observe(KEY).children
    assert (children.pods, [one.identity for one in orphan_pods(children)]) == ((), [RUN.identity])
    adapter.cluster.delete(KEY, ObjectReference("Pod", left["metadata"]["name"]))
    (request,) = adapter.double.sent("DELETE")
    assert request.body["preconditions"] == {"uid": left["metadata"]["uid"]}


def test_pods_of_a_jobset_whose_job_is_not_known_yet_are_no_orphans(adapter: Adapter) -> None:
    of = job_set()
    adapter.store.put(of)
    adapter.store.put(pod(child_of(of), 0))
    children = adapter.cluster.observe(KEY).children
    assert (children.pods, children.orphans) == ((), ())


def test_pod_of_a_self_made_job_under_another_name_is_no_orphan(adapter: Adapter) -> None:
    made = child_of(job_set())
    made["metadata"]["name"] = f"{RUN.name}-n-1"
    adapter.store.put(pod(made, 0))
    assert adapter.cluster.observe(KEY).children.orphans == ()


def test_orphan_next_to_a_jobset_is_no_reason_to_ask_for_its_job(adapter: Adapter) -> None:
    of = job_set()
    adapter.store.put(of)
    adapter.store.put(orphan(child_of(of), f"{RUN.name}-0-abcde"))
    assert (len(adapter.cluster.observe(KEY).children.orphans), adapter.double.requests) == (1, [])


def test_job_of_a_jobset_is_read_once_when_it_has_pods(adapter: Adapter) -> None:
    of = job_set()
    child = child_of(of)
    adapter.store.put(of)
    assert (adapter.cluster.observe(KEY).children.child_jobs, adapter.double.requests) == ({}, [])
    adapter.double.add(job_path(child["metadata"]["name"]), child)
    for index in (0, 1):
        adapter.store.put(pod(child, index, address="10.0.0.1"))
    world = adapter.cluster.observe(KEY)
    assert world.children.child_jobs == {RUN.name: "child-1"}
    (state,) = all_states(world.children, world.now)
    assert (state.object_kind, state.phase) == ("JobSet", RunPhase.RUNNING)
    adapter.cluster.observe(KEY)
    assert [str(request) for request in adapter.double.requests] == [
        f"GET {job_path(child['metadata']['name'])}"
    ]


def test_self_made_job_in_the_place_of_a_jobsets_does_not_speak(adapter: Adapter) -> None:
    of = job_set()
    made = child_of(of, uid="self-made")
    made["metadata"]["ownerReferences"] = []
    adapter.store.put(of)
    adapter.double.add(job_path(made["metadata"]["name"]), made)
    found = pod(made, 0, phase="Failed", ended={"exitCode": 64})
    adapter.store.put(found)
    for _ in range(3):
        assert adapter.cluster.observe(KEY).children.pods == ()
    assert len(adapter.double.requests) == 1, "it is not asked for at each reconcile"


# --- hidden runs ---


def open_resource(adapter: Adapter, **status: Any) -> None:
    adapter.store.put(adaptation(10**6) | {"status": status or OPEN})


def test_open_run_without_its_labels_is_found_by_its_name(adapter: Adapter) -> None:
    """Without its labels no watch and no list reports it, and it would be started a second time."""
    open_resource(adapter)
    hidden = job(run=RUN)
    hidden["metadata"]["labels"] = {}
    adapter.double.add(job_path(RUN.name), hidden)
    assert adapter.store.put(hidden) is None
    world = adapter.cluster.observe(KEY)
    (state,) = all_states(world.children, world.now)
    assert (state.identity, state.object_uid) == (RUN.identity, "job-1")
    adapter.double.requests.clear()
    adapter.store.put(job(10**6, run=RUN))
    adapter.cluster.observe(KEY)
    assert adapter.double.requests == []


def test_open_run_whose_job_is_gone_or_anothers_stays_lost(adapter: Adapter) -> None:
    open_resource(adapter)
    assert adapter.cluster.observe(KEY).children.jobs == ()
    copied = job(run=RUN)
    copied["metadata"]["ownerReferences"] = []
    adapter.double.add(job_path(RUN.name), copied)
    assert adapter.cluster.observe(KEY).children.jobs == ()


def test_hidden_jobset_is_looked_for_only_where_the_profile_creates_them(adapter: Adapter) -> None:
    open_resource(adapter)
    hidden = job_set()
    hidden["metadata"]["labels"] = {}
    adapter.double.groups.add("jobset.x-k8s.io/v1alpha2")
    adapter.double.add(f"{JOBSETS}/{RUN.name}", hidden)
    assert adapter.cluster.observe(KEY).children.jobs == ()
    metadata = {
        "name": "sets",
        "uid": "p",
        "resourceVersion": "7",
        "annotations": {"dapt.dev/default": "true"},
    }
    adapter.store.put({"kind": "AdaptationProfile", "metadata": metadata, "spec": {"launcher": "JobSet"}})
    (found,) = adapter.cluster.observe(KEY).children.jobs
    assert found["metadata"]["uid"] != ""


def test_run_that_cannot_be_looked_for_is_not_judged(adapter: Adapter) -> None:
    open_resource(adapter)
    adapter.double.odd("GET .*/jobs/", *[Odd(503)] * 4)
    with pytest.raises(ApiError, match="503"):
        adapter.cluster.observe(KEY)


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"ledger": {"runs": "odd"}},
        {"ledger": {"runs": [{"stage": "publish"}]}},
        {"ledger": {"runs": [{"stage": "publish", "fence": 0}]}},
        {"ledger": {"runs": [{"stage": "publish", "fence": 1, "state": "Succeeded"}]}},
    ],
)
def test_status_without_an_open_run_or_edited_by_hand_names_none(status: dict[str, Any]) -> None:
    assert open_run_names(adaptation() | {"status": status}) == ()


def test_record_that_cannot_be_read_hides_no_other() -> None:
    runs = [7, {"stage": "publish", "fence": "x"}, *OPEN["ledger"]["runs"]]
    assert open_run_names(adaptation() | {"status": {"ledger": {"runs": runs}}}) == (RUN.name,)
