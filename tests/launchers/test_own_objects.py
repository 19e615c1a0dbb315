"""Tests which Jobs and pods speak for a run: those that we created, whatever labels others have or remove."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_operator.launchers import all_states
from dapt_operator.launchers.labels import held_run
from dapt_operator.stage_run import Children, RunPhase
from support.gang_objects import NOW, RUN, SUCCESS, ended, job, job_set, job_uid, pod, state_of
from support.launch_builders import UID

FOREIGN_OWNERS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "another Job": [{"apiVersion": "batch/v1", "kind": "Job", "uid": "theirs", "controller": True}],
    "no controller": [{"apiVersion": "batch/v1", "kind": "Job", "uid": job_uid()}],
    "another kind": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "uid": job_uid(), "controller": True}],
    "another group": [{"apiVersion": "other.dev/v1", "kind": "Job", "uid": job_uid(), "controller": True}],
}


@pytest.mark.parametrize("owners", FOREIGN_OWNERS.values(), ids=FOREIGN_OWNERS)
@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
def test_pod_with_our_labels_and_another_controller_does_not_speak(
    make: Any, owners: list[dict[str, Any]]
) -> None:
    foreign = [item | {"metadata": item["metadata"] | {"ownerReferences": owners}} for item in (
        ended(0, 0, SUCCESS), ended(1, 64),
    )]  # fmt: skip
    assert state_of(*foreign, of=make()).phase is RunPhase.PENDING


def test_pod_of_a_jobset_speaks_only_once_its_job_is_known() -> None:
    pods = (ended(0, 0, SUCCESS), ended(1, 0))
    (state,) = all_states(Children(jobs=(job_set(),), pods=pods), NOW)
    assert state.phase is RunPhase.PENDING
    assert state_of(*pods, of=job_set()).phase is RunPhase.SUCCEEDED


def test_labels_of_a_pod_do_not_matter() -> None:
    bare = [item | {"metadata": item["metadata"] | {"labels": {}}} for item in (
        ended(0, 0, SUCCESS), ended(1, 0),
    )]  # fmt: skip
    assert state_of(*bare).phase is RunPhase.SUCCEEDED


@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
@pytest.mark.parametrize(
    "labels", [{}, {"dapt.dev/try": "7"}, {"dapt.dev/fence": str(10**18), "dapt.dev/uid": "other"}]
)
def test_changed_labels_of_a_job_change_nothing(make: Any, labels: dict[str, str]) -> None:
    changed = make()
    changed["metadata"]["labels"] = changed["metadata"]["labels"] | labels if labels else {}
    held = held_run(changed)
    assert held is not None
    assert (held.identity, held.kind) == (RUN.identity, "publish")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "clinical-llama-publish-copy"},
        {"ownerReferences": []},
        {"ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "uid": UID, "controller": True}]},
        {
            "ownerReferences": [
                {
                    "apiVersion": "dapt.dev/v1alpha1",
                    "kind": "DomainAdaptation",
                    "name": "clinical-llama",
                    "uid": "older",
                    "controller": True,
                }
            ]
        },
    ],
    ids=["name", "no owner", "another owner", "an older resource"],
)
@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
def test_copy_of_a_job_is_no_run(make: Any, change: dict[str, Any]) -> None:
    copied = make()
    copied["metadata"] |= change
    assert held_run(copied) is None
    assert all_states(Children(jobs=(copied,)), NOW) == ()


def test_job_of_a_jobset_is_no_run() -> None:
    child = job()
    child["metadata"]["ownerReferences"] = [
        {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "name": RUN.name, "uid": UID,
         "controller": True}
    ]  # fmt: skip
    states = all_states(Children(jobs=(child, job_set())), NOW)
    assert [state.object_kind for state in states] == ["JobSet"]


@pytest.mark.parametrize("index", ["7" * 5000, "\u00b2", "-1", "one"])
def test_odd_completion_index_is_the_first(index: str) -> None:
    odd = pod(0, "Running")
    odd["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
    assert state_of(odd).phase is RunPhase.RUNNING
