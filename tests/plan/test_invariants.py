"""The checker of impossible worlds refuses each of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dapt_operator.testing.invariants import (
    ImpossibleWorldError,
    check_conditions,
    check_deletion,
    check_history,
    check_new_job,
    check_pod_deletion,
    key_of,
)
from dapt_operator.testing.objects import Ends
from support.builders import facts_for, healthy
from support.worlds import World


@pytest.fixture
def world() -> World:
    made = World()
    made.live_until("baseline")
    return made


def parts(world: World) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    raw = world.cluster.observe(world.key)
    assert raw.resource is not None
    return (
        dict(raw.resource),
        world.cluster.objects(world.key, "Job"),
        world.cluster.objects(world.key, "Job")[-1],
    )


def test_a_run_that_is_created_twice(world: World) -> None:
    resource, jobs, job = parts(world)
    with pytest.raises(ImpossibleWorldError, match="the run baseline-a1 try 1 was created twice"):
        check_new_job(resource, jobs, job, [key_of(job)])


def test_a_fence_that_does_not_rise(world: World) -> None:
    resource, jobs, job = parts(world)
    with pytest.raises(ImpossibleWorldError, match="fence 3 is not above 3"):
        check_new_job(resource, jobs, job, [])


def test_two_runs_at_once(world: World) -> None:
    resource, jobs, job = parts(world)
    job["metadata"]["labels"] |= {"dapt.dev/fence": "9", "dapt.dev/try": "2"}
    with pytest.raises(ImpossibleWorldError, match="baseline-a1 was created while clinical-baseline-"):
        check_new_job(resource, jobs, job, [])


def test_a_run_of_another_resource(world: World) -> None:
    resource, jobs, job = parts(world)
    resource["metadata"]["uid"] = "other"
    with pytest.raises(ImpossibleWorldError, match="a Job of another resource"):
        check_new_job(resource, jobs, job, [])


def test_a_run_while_suspended_or_after_the_end(world: World) -> None:
    resource, _, job = parts(world)
    with pytest.raises(ImpossibleWorldError, match="while suspended"):
        check_new_job(resource | {"spec": {"suspend": True}}, [], job, [])
    over = {"conditions": [{"type": "Finished", "status": "True", "reason": "Published"}]}
    with pytest.raises(ImpossibleWorldError, match=r"after the end \(Published\)"):
        check_new_job(resource | {"status": over}, [], job, [])


def test_a_deletion_of_what_was_not_written_down(world: World) -> None:
    resource, _, job = parts(world)
    with pytest.raises(ImpossibleWorldError, match="before the status had its run"):
        check_deletion(resource | {"status": {}}, job)
    world.cluster.run_pods(world.key, healthy)
    _, _, ended = parts(world)
    with pytest.raises(ImpossibleWorldError, match="before its result was written"):
        check_deletion(resource, ended)


def test_a_result_that_a_newer_run_replaces_or_a_dropped_record_had_may_be_deleted(world: World) -> None:
    world.cluster.run_pods(world.key, healthy)
    resource, jobs, _ = parts(world)
    ended = jobs[-1]
    runs = resource["status"]["ledger"]["runs"]
    newer = [*runs[:-1], runs[-1] | {"try": 2, "fence": 9}]
    check_deletion(resource | {"status": {"ledger": {"runs": newer}}}, ended)
    closed = {"runs": [runs[0] | {"fence": 9}], "closed": {"lineages": ["baseline 1  1"]}}
    check_deletion(resource | {"status": {"ledger": closed}}, ended)
    with pytest.raises(ImpossibleWorldError, match="before its result was written"):
        check_deletion(resource | {"status": {"ledger": closed | {"closed": {"lineages": []}}}}, ended)


def test_a_status_that_goes_back(world: World) -> None:
    before = world.status
    finished = {"conditions": [{"type": "Finished", "status": "True", "reason": "Published"}]}
    with pytest.raises(ImpossibleWorldError, match="Finished Published was taken back"):
        check_history(finished, {"conditions": []})
    with pytest.raises(ImpossibleWorldError, match="is lost"):
        check_history(before, {"ledger": {"fence": 9, "runs": []}})
    changed = world.status
    changed["ledger"]["runs"][0]["state"] = "Open"
    with pytest.raises(ImpossibleWorldError, match="succeeded and was changed"):
        check_history(before, changed)
    with pytest.raises(ImpossibleWorldError, match="the fence decreased"):
        check_history(before, world.status | {"ledger": before["ledger"] | {"fence": 1}})


def test_conditions_that_contradict_each_other(world: World) -> None:
    before = world.status

    def with_condition(type_: str, **over: str) -> dict[str, Any]:
        changed = world.status
        for one in changed["conditions"]:
            if one["type"] == type_:
                one.update(over)
        return changed

    with pytest.raises(
        ImpossibleWorldError, match=r"\['Accepted', 'Reconciling', 'Stalled'\] are True at once"
    ):
        check_conditions(before, with_condition("Stalled", status="True"), 1)
    with pytest.raises(ImpossibleWorldError, match="the status is not about generation 2"):
        check_conditions(before, world.status, 2)
    with pytest.raises(ImpossibleWorldError, match="Ready changed its transition time and not its status"):
        check_conditions(before, with_condition("Ready", lastTransitionTime="2027-01-31T12:00:00Z"), 1)
    with pytest.raises(ImpossibleWorldError, match="no condition says why nothing runs"):
        check_conditions(before, with_condition("Reconciling", status="False"), 1)
    with pytest.raises(ImpossibleWorldError, match="Ready has reason 'Because'"):
        check_conditions(before, with_condition("Ready", reason="Because"), 1)
    with pytest.raises(ImpossibleWorldError, match="conditions are Accepted"):
        check_conditions(before, world.status | {"conditions": before["conditions"][:1]}, 1)


def test_a_job_that_is_deleted_twice_or_before_its_cause_is_known(world: World) -> None:
    resource, _, job = parts(world)
    pod = {"metadata": {"name": "x"}, "status": {"phase": "Failed"}}
    with pytest.raises(ImpossibleWorldError, match="before the cause of its failure was written"):
        check_deletion(resource, job, [pod])
    job["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    with pytest.raises(ImpossibleWorldError, match="was deleted twice"):
        check_deletion(resource, job)


def test_a_pod_that_is_deleted_without_a_failed_peer_or_slowly() -> None:
    owners = [{"kind": "Job", "name": "x", "uid": "1"}]
    running = {"metadata": {"name": "x-0", "ownerReferences": owners}, "status": {"phase": "Running"}}
    failed = {"metadata": {"name": "x-1", "ownerReferences": owners}, "status": {"phase": "Failed"}}
    with pytest.raises(ImpossibleWorldError, match="although no peer of it has failed"):
        check_pod_deletion(running, [running], 0)
    with pytest.raises(ImpossibleWorldError, match="with a grace period"):
        check_pod_deletion(running, [running, failed], None)
    check_pod_deletion(running, [running, failed], 0)


def labelled(job: dict[str, Any], **labels: str) -> dict[str, Any]:
    """The same Job under another identity."""
    made = json.loads(json.dumps(job))
    made["metadata"]["labels"] |= {f"dapt.dev/{name}": value for name, value in labels.items()}
    return made


def test_an_attempt_that_starts_before_it_was_written_down_or_changes_afterwards(world: World) -> None:
    resource, _, job = parts(world)
    second = labelled(job, stage="pretrain", attempt="2", fence="9")
    with pytest.raises(ImpossibleWorldError, match="created before the ledger had attempt 2"):
        check_new_job(resource, [], second, [])
    decided = {"ledger": {"attempts": [{"number": 2}]}}
    check_new_job(resource | {"status": decided}, [], second, [])
    with pytest.raises(ImpossibleWorldError, match="an attempt that was decided on was changed"):
        check_history(decided, {"ledger": {"attempts": [{"number": 2, "start": "a1-s10"}]}})


def test_invariants_allow_parallel_evaluations_up_to_the_limit(world: World) -> None:
    resource, _, job = parts(world)
    training = labelled(job, stage="pretrain", fence="3")
    first = labelled(job, stage="evaluate", candidate="a1-s10", fence="4")
    second = labelled(job, stage="evaluate", candidate="a1-s20", fence="5")
    check_new_job(resource, [training], first, [])
    check_new_job(resource, [training, first], second, [], max_evaluations=2)
    with pytest.raises(ImpossibleWorldError, match="is evaluation 2 at the same time, over the limit of 1"):
        check_new_job(resource, [training, first], second, [], max_evaluations=1)
    tuning = labelled(job, stage="finetune", candidate="a1-s10", fence="6")
    with pytest.raises(ImpossibleWorldError, match="finetune-a1-a1-s10 was created while"):
        check_new_job(resource, [first], tuning, [])


def test_an_end_without_any_report_counts_as_written_once_it_is_a_failure(world: World) -> None:
    world.cluster.run_pods(world.key, lambda stage: Ends(facts=facts_for(stage), lose_message=True))
    resource, jobs, _ = parts(world)
    ended, runs = jobs[-1], resource["status"]["ledger"]["runs"]
    failed = resource | {"status": {"ledger": {"runs": [*runs[:-1], runs[-1] | {"state": "Failed"}]}}}
    pods = world.cluster.objects(world.key, "Pod")
    check_deletion(failed, ended, pods)
    with pytest.raises(ImpossibleWorldError, match="before its result was written"):
        check_deletion(resource, ended, pods)
    pods[0]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "{}"
    with pytest.raises(ImpossibleWorldError, match="before its result was written"):
        check_deletion(failed, ended, pods)
