"""Tests the store of watches, lists and own writes, in whatever order they arrive."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from dapt_operator.cluster.kubernetes import Store
from dapt_operator.cluster.port import Key
from dapt_operator.launchers import all_states
from dapt_operator.plan.observed import observe
from dapt_operator.stage_run import Children
from support.cluster_objects import KEY, adaptation, job, pod, stored
from support.launch_builders import UID, owner, stage_run

FAILED = {"exitCode": 64, "finishedAt": "2026-01-31T12:01:00Z", "message": "x"}


def names(found: tuple[Any, ...]) -> list[str]:
    return [item["metadata"]["name"] for item in found]


@pytest.fixture
def store() -> Store:
    made = Store()
    assert made.put(adaptation(10)) == KEY
    return made


def test_what_is_put_is_found_with_its_family(store: Store) -> None:
    of = job()
    assert store.put(of) == KEY
    assert store.put(pod(of)) == KEY
    family = store.with_children(KEY)
    assert family.resource is not None
    assert family.resource["metadata"]["resourceVersion"] == "10"
    assert names(family.jobs) == [of["metadata"]["name"]]
    assert names(family.pods) == [f"{of['metadata']['name']}-0-abcde"]
    assert store.keys() == (KEY,)
    assert store.with_children(Key("health", "another")).resource is None


def test_long_object_is_read_as_it_was_stored(store: Store) -> None:
    long = adaptation(12) | {"status": {"message": "ä" * 100_000}}
    assert store.put(long) == KEY
    resource, family = store.resource(KEY), store.with_children(KEY)
    assert resource is not None
    assert resource["status"] == long["status"]
    assert family.resource == resource


def test_store_ignores_an_event_older_than_its_own_write(store: Store) -> None:
    store.put(adaptation(12) | {"status": {"phase": "Training"}}, is_own_write=True)
    assert store.put(adaptation(11) | {"status": {"phase": "Preparing"}}) is None
    resource = store.resource(KEY)
    assert resource is not None
    assert resource["status"] == {"phase": "Training"}


def test_own_status_write_wakes_once_when_the_watch_reports_it(store: Store) -> None:
    written = adaptation(12) | {"status": {"phase": "Training"}}
    store.put(written, is_own_write=True)
    assert store.put(written) == KEY
    assert store.put(written) is None


def test_watch_may_report_an_own_write_before_its_response(store: Store) -> None:
    written = adaptation(12) | {"status": {"phase": "Training"}}
    assert store.put(written) == KEY
    assert store.put(written, is_own_write=True) is None
    assert store.put(written) is None


def test_own_job_does_not_wake_when_the_watch_reports_it(store: Store) -> None:
    of = job(20)
    assert store.put(of, is_own_write=True) == KEY
    assert store.put(of) is None


def test_store_wakes_no_key_for_a_change_without_a_reader(store: Store) -> None:
    of = job(20)
    store.put(of)
    later = job(21) | {"status": {"active": 2, "ready": 1, "uncountedTerminatedPods": {}}}
    assert store.put(later) is None
    assert store.put(job(20) | {"status": {"conditions": [{"type": "Failed", "status": "True"}]}}) is None
    ended = {"conditions": [{"type": "Failed", "status": "True"}]}
    assert store.put(job(22) | {"status": ended}) == KEY
    assert store.with_children(KEY).jobs[0]["status"] == ended


def test_a_deleted_object_never_comes_back_by_a_late_event(store: Store) -> None:
    of = job(20)
    store.put(of)
    assert store.remove(job(25)) == KEY
    assert store.put(job(24)) is None
    assert store.put(of, is_own_write=True) is None
    assert store.with_children(KEY).jobs == ()


def test_store_keeps_an_object_deleted_before_its_creation_was_reported(store: Store) -> None:
    store.remove(job(25))
    assert store.put(job(20), is_own_write=True) is None
    assert store.with_children(KEY).jobs == ()


def test_the_deletion_of_a_predecessor_does_not_remove_its_successor(store: Store) -> None:
    store.put(adaptation(30, uid="new"))
    assert store.remove(adaptation(29)) is None
    resource = store.resource(KEY)
    assert resource is not None
    assert resource["metadata"]["uid"] == "new"
    assert store.put(adaptation(31)) is None, "an event of the old one comes too late"


def test_children_of_a_predecessor_are_not_shown(store: Store) -> None:
    of = job()
    store.put(of)
    store.put(pod(of))
    successor = owner(uid="ffffffff-0000-0000-0000-000000000000")
    store.put(adaptation(99999, uid=successor.uid))
    assert store.with_children(KEY).jobs == ()
    assert store.with_children(KEY).pods == ()
    theirs = job(uid="job-2", of=successor, run=stage_run(of=successor))
    store.put(theirs)
    assert names(store.with_children(KEY).jobs) == [theirs["metadata"]["name"]]
    assert store.uid("Job", "health", of["metadata"]["name"]) == ("job-1", UID)


def test_store_skips_the_jobs_of_a_jobset_and_keeps_their_pods(store: Store) -> None:
    inner = job(uid="inner")
    inner["metadata"]["labels"]["jobset.sigs.k8s.io/jobset-name"] = "gang"
    inner["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "name": "gang",
            "uid": "js",
            "controller": True,
        }
    ]
    assert store.put(inner) is None
    assert store.put(pod(inner)) == KEY
    assert store.with_children(KEY).jobs == ()
    assert len(store.with_children(KEY).pods) == 1


@pytest.mark.parametrize(
    "owners",
    [
        [],
        [{"apiVersion": "dapt.dev/v1alpha1", "kind": "DomainAdaptation", "uid": "other", "controller": True}],
        [{"apiVersion": "other.dev/v1", "kind": "DomainAdaptation", "uid": UID, "controller": True}],
        [{"apiVersion": "dapt.dev/v1alpha1", "kind": "DomainAdaptation", "uid": UID}],
    ],
)
def test_store_skips_a_job_with_our_labels_and_another_owner(store: Store, owners: list[Any]) -> None:
    copied = job()
    copied["metadata"]["ownerReferences"] = owners
    assert store.put(copied) is None
    assert store.with_children(KEY).jobs == ()


def test_store_drops_a_job_that_lost_its_labels(store: Store) -> None:
    store.put(job(20))
    bare = job(21)
    bare["metadata"]["labels"] = {}
    assert store.put(bare) == KEY
    assert store.with_children(KEY).jobs == ()


def test_a_late_event_of_a_foreign_object_of_our_name_is_no_loss(store: Store) -> None:
    store.put(job(20), is_own_write=True)
    foreign = job(10, uid="theirs")
    foreign["metadata"]["labels"] = {}
    assert store.put(foreign) is None
    assert len(store.with_children(KEY).jobs) == 1
    assert store.remove(job(15, uid="theirs")) is None
    assert len(store.with_children(KEY).jobs) == 1
    foreign["metadata"]["resourceVersion"] = "30"
    assert store.put(foreign) == KEY, "ours was deleted and theirs stands there now"
    assert store.with_children(KEY).jobs == ()


def test_store_keeps_an_ended_pod_as_long_as_its_job(store: Store) -> None:
    of = job()
    store.put(of)
    store.put(pod(of, 0))
    store.put(pod(of, 1))
    gone = pod(of, 0, phase="Failed", ended=FAILED)
    assert store.remove(gone) == KEY, "the deletion itself tells how it ended"
    assert store.remove(pod(of, 1)) == KEY
    left = store.with_children(KEY).pods
    assert [item["status"]["phase"] for item in left] == ["Failed"], "one that did not end is gone"
    assert store.uid("Pod", "health", left[0]["metadata"]["name"]) is None, "there is nothing to delete"
    assert store.replace("Pod", [], "9999999") == set()
    assert len(store.with_children(KEY).pods) == 1
    store.remove(of)
    assert store.with_children(KEY).pods == ()


def test_list_removes_an_object_whose_deletion_was_missed(store: Store) -> None:
    kept, missed = job(20, uid="a"), job(21, uid="b", run=stage_run(try_number=2, fence=2))
    store.put(kept)
    store.put(missed)
    assert store.replace("Job", [kept], "30") == {KEY}
    assert names(store.with_children(KEY).jobs) == [kept["metadata"]["name"]]
    assert store.replace("Job", [kept], "31") == set()
    assert store.put(missed) is None


def test_a_list_does_not_take_away_what_was_made_after_it(store: Store) -> None:
    store.put(job(40), is_own_write=True)
    assert store.replace("Job", [], "39") == set()
    assert len(store.with_children(KEY).jobs) == 1
    assert store.replace("Job", [], "40") == {KEY}
    assert store.with_children(KEY).jobs == ()


def test_a_list_older_than_what_is_known_changes_nothing(store: Store) -> None:
    store.put(adaptation(50) | {"status": {"phase": "Training"}})
    assert store.replace("DomainAdaptation", [adaptation(45)], "48") == set()
    resource = store.resource(KEY)
    assert resource is not None
    assert resource["status"] == {"phase": "Training"}


def test_the_list_of_a_namespace_leaves_the_others_alone(store: Store) -> None:
    assert store.replace("DomainAdaptation", [], "99999", namespace="finance") == set()
    assert store.keys() == (KEY,)
    assert store.replace("DomainAdaptation", [], "99999", namespace="health") == {KEY}
    assert store.keys() == ()


def test_list_items_without_a_kind_are_accepted(store: Store) -> None:
    bare = {name: value for name, value in job().items() if name not in ("kind", "apiVersion")}
    assert store.replace("Job", [bare], "99999") == {KEY}
    assert len(store.with_children(KEY).jobs) == 1


def test_profiles_concern_those_who_name_them_and_those_who_name_none(store: Store) -> None:
    profile = {
        "kind": "AdaptationProfile",
        "metadata": {"name": "gpu", "uid": "p", "resourceVersion": "5"},
        "spec": {},
    }
    assert store.put(profile) is None
    assert names((store.profile("gpu"),)) == ["gpu"]
    named = adaptation(60, uid="n", profile="gpu")
    named["metadata"]["name"] = "named"
    other = adaptation(61, uid="o", profile="cpu")
    other["metadata"]["name"] = "other"
    store.put(named)
    store.put(other)
    assert set(store.keys_of_profile("gpu")) == {KEY, Key("health", "named")}
    store.remove(profile)
    assert store.profile("gpu") is None


def test_only_a_running_first_pod_can_be_asked(store: Store) -> None:
    of = job()
    store.put(of)
    store.put(pod(of, 1, address="10.0.0.2"))
    store.put(pod(of, 0, phase="Pending"))
    assert store.targets() == ()
    store.put(pod(of, 0, address="10.0.0.1"))
    (target,) = store.targets()
    assert (target.key, target.holder, target.host, target.port) == (
        KEY,
        of["metadata"]["name"],
        "10.0.0.1",
        9400,
    )
    assert target.run == of["metadata"]["labels"]["dapt.dev/run"]
    store.put(pod(of, 0, phase="Succeeded", ended={"exitCode": 0}, address="10.0.0.1"))
    assert store.targets() == ()


def test_states_are_the_same_with_what_is_kept_as_with_everything() -> None:
    run = stage_run(nodes=2, accelerators=8)
    of = job(run=run, startTime="2026-01-31T12:00:00Z")
    pods = (
        pod(of, 0, phase="Failed", ended=FAILED | {"startedAt": "2026-01-31T12:00:05Z"}),
        pod(of, 1),
    )
    resource = adaptation()
    store = Store()
    for body in (resource, of, *pods):
        store.put(body)
    family = store.with_children(KEY)
    now = observe(resource, None, (), _now()).now
    kept = all_states(Children(family.jobs, family.pods), now)
    whole = all_states(Children((of,), pods), now)
    assert kept == whole
    assert kept[0].accelerators == 16
    assert len(str(family.pods)) < len(str(pods)) / 2


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime(2026, 1, 31, 12, 1, tzinfo=UTC)


def test_store_keeps_only_the_annotations_that_are_read(store: Store) -> None:
    with_note = adaptation(70)
    with_note["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": 10_000 * "x", "team": "nlp",
        "dapt.dev/generation": "3",
    }  # fmt: skip
    store.put(with_note)
    resource = store.resource(KEY)
    assert resource is not None
    assert resource["metadata"]["annotations"] == {"dapt.dev/generation": "3"}
    assert "managedFields" not in resource["metadata"]
    assert with_note["metadata"]["managedFields"], "what is put is not changed"


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "Job", "metadata": {"name": "x", "namespace": "health"}},
        {
            "kind": "Pod",
            "metadata": {"name": "x", "namespace": "health", "labels": {"dapt.dev/adaptation": "y"}},
        },
        {"kind": "Lease", "metadata": {"name": "x", "namespace": "health"}},
        {"kind": "Job"},
    ],
)
def test_store_skips_foreign_objects(store: Store, body: Any) -> None:
    assert store.put(body) is None
    assert store.remove(body) is None


def test_many_threads_may_use_it_at_once() -> None:
    store = Store()
    store.put(adaptation(1))
    of = job(2)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_number in range(100):
                one = stored(pod(of, number), uid=f"{number}-{round_number}")
                one["metadata"]["name"] = f"pod-{number}"
                store.put(one)
                store.with_children(KEY)
                store.targets()
                store.remove(one)
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert errors == []
    assert store.with_children(KEY).pods == ()
