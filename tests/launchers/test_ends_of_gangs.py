"""Tests the end of one pod: whether its peers still run, which of them must be ended, and whose cause counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.stage_run import RunPhase
from support.gang_objects import (
    DISRUPTED,
    NOW,
    RUN,
    deleted,
    ended,
    job,
    job_set,
    pod,
    state_of,
    termination_message,
)

AT_ONCE = datetime(2026, 1, 31, 12, 1, 30, tzinfo=UTC)
"""The moment at which `ended` pods ended."""
RUNNING = {"running": {"startedAt": "2026-01-31T12:00:05Z"}}
PEER = f"{RUN.name}-1"
BY_TAINT: dict[str, Any] = {
    "conditions": [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": "2026-01-31T12:01:30Z",
        }
    ]
}


def test_peers_of_a_pod_that_failed_by_itself_may_end_at_once() -> None:
    crash = termination_message(1, Cause.CRASH, "rank 0 failed")
    state = state_of(ended(0, 1, crash), pod(1, "Running", state=RUNNING), now=AT_ONCE)
    assert (state.phase, state.has_failed_pod, state.peers_to_end) == (RunPhase.RUNNING, True, (PEER,))


def test_a_pod_without_any_message_failed_by_itself() -> None:
    state = state_of(ended(0, 137, reason="OOMKilled"), pod(1, "Running"), now=AT_ONCE)
    assert state.peers_to_end == (PEER,)


def test_secondary_failure_gives_peers_seconds_to_report_the_cause() -> None:
    felt = termination_message(75, Cause.INFRASTRUCTURE, "rank 0 lost its peers", is_effect=True)
    pods = (ended(0, 75, felt), pod(1, "Running"))
    assert state_of(*pods, now=AT_ONCE + timedelta(seconds=4)).peers_to_end == ()
    assert state_of(*pods, now=AT_ONCE + timedelta(seconds=5)).peers_to_end == (PEER,)


@pytest.mark.parametrize(("exit_code", "cause"), [(76, Cause.FORGETTING_LIMIT), (77, Cause.DIVERGED)])
def test_an_end_that_all_ranks_decide_leaves_rank_0_time_to_report_it(exit_code: int, cause: Cause) -> None:
    decided = termination_message(exit_code, cause, "general perplexity is +90.0% over the base model's")
    pods = (pod(0, "Running", state=RUNNING), ended(1, exit_code, decided))
    assert state_of(*pods, now=AT_ONCE + timedelta(seconds=59)).peers_to_end == ()
    assert state_of(*pods, now=AT_ONCE + timedelta(seconds=60)).peers_to_end == (f"{RUN.name}-0",)


def test_peers_of_a_stopped_pod_may_save() -> None:
    stopped = termination_message(143, Cause.STOPPED, "stopped at step 40; checkpoint written")
    assert state_of(ended(0, 143, stopped), pod(1, "Running")).peers_to_end == ()
    assert state_of(ended(0, 143, stopped, **DISRUPTED), pod(1, "Running")).peers_to_end == ()


def test_peers_of_a_pod_that_was_taken_away_without_a_save_end_after_seconds() -> None:
    pods = (ended(0, 137, **DISRUPTED), pod(1, "Running"))
    assert state_of(*pods, now=AT_ONCE + timedelta(seconds=4)).peers_to_end == ()
    assert state_of(*pods, now=AT_ONCE + timedelta(seconds=5)).peers_to_end == (PEER,)


def test_nothing_ends_while_nothing_failed() -> None:
    assert state_of(ended(0, 0), pod(1, "Running")).peers_to_end == ()
    assert state_of(pod(0, "Running"), pod(1, "Running")).peers_to_end == ()


@pytest.mark.parametrize("peer_code", [137, 143, 75])
@pytest.mark.parametrize("cause", [Cause.CRASH, Cause.HANG, Cause.OUT_OF_MEMORY])
def test_a_peer_that_was_killed_afterwards_does_not_change_the_cause(cause: Cause, peer_code: int) -> None:
    code = {Cause.CRASH: 1, Cause.HANG: 75, Cause.OUT_OF_MEMORY: 70}[cause]
    first = ended(0, code, termination_message(code, cause, "the true reason"))
    killed = deleted(ended(1, peer_code, at=31), "2026-01-31T12:01:40Z")
    for pods in ((first, killed), (first, deleted(pod(1, "Running"), "2026-01-31T12:01:31Z", 0)), (first,)):
        state = state_of(*pods)
        assert (state.phase, state.cause, state.message) == (RunPhase.FAILED, cause, "the true reason")


@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
def test_the_objects_own_failure_before_or_after_gives_the_same_cause(make: Any) -> None:
    crash = ended(0, 1, termination_message(1, Cause.CRASH, "rank 0 failed"))
    peer = deleted(pod(1, "Running", state=RUNNING), "2026-01-31T13:00:20Z")
    over = make(RUN, {"type": "Failed", "reason": "BackoffLimitExceeded", "message": "Job has reached it"})
    told = state_of(crash, peer, of=over)
    assert (told.phase, told.cause, told.message) == (RunPhase.FAILED, Cause.CRASH, "rank 0 failed")
    assert state_of(crash, peer, of=make(RUN)).phase is RunPhase.RUNNING
    untold = state_of(crash, deleted(peer, "2026-01-31T12:59:00Z"), of=make(RUN))
    assert (untold.phase, untold.cause, untold.message) == (told.phase, told.cause, told.message)


@pytest.mark.parametrize("type_", ["FailureTarget", "SuccessCriteriaMet"])
def test_job_condition_that_announces_an_end_does_not_end_the_run(type_: str) -> None:
    state = state_of(pod(0, "Running"), pod(1, "Running"), of=job(RUN, {"type": type_}))
    assert state.phase is RunPhase.RUNNING


def test_terminating_pod_counts_as_running_until_its_grace_period_is_over() -> None:
    drained = deleted(pod(0, "Running", state=RUNNING, **DISRUPTED), "2026-01-31T12:59:56Z")
    peer = ended(1, 75, termination_message(75, Cause.INFRASTRUCTURE, "lost a peer", is_effect=True))
    assert state_of(drained, peer).phase is RunPhase.RUNNING
    later = state_of(drained, peer, now=NOW + timedelta(seconds=1))
    assert (later.phase, later.cause, later.message) == (
        RunPhase.FAILED,
        Cause.DISRUPTION,
        "EvictionByEvictionAPI: drained",
    )


def test_pod_on_a_lost_node_does_not_delay_the_end_of_the_run() -> None:
    lost = deleted(pod(0, "Running", state=RUNNING, **BY_TAINT), "2026-01-31T12:59:00Z")
    state = state_of(lost, pod(1, "Running"))
    assert (state.phase, state.peers_to_end) == (RunPhase.RUNNING, (PEER,))
    over = state_of(lost, deleted(pod(1, "Running"), "2026-01-31T12:59:59Z", 0))
    assert (over.phase, over.cause) == (RunPhase.FAILED, Cause.DISRUPTION)
    assert over.message == "DeletionByTaintManager: Taint manager: deleting due to NoExecute taint"


def test_pod_deleted_without_grace_is_reported_as_infrastructure_failure() -> None:
    state = state_of(
        *(deleted(pod(index, "Running", state=RUNNING), "2026-01-31T13:00:00Z", 0) for index in (0, 1))
    )
    assert (state.phase, state.cause) == (RunPhase.FAILED, Cause.INFRASTRUCTURE)
    assert (
        state.message
        == "the pod was deleted and its node did not report within the grace period how it ended"
    )


def test_a_queue_that_takes_its_quota_back_costs_no_retry() -> None:
    evicted = [deleted(ended(index, 137), "2026-01-31T12:02:00Z") for index in (0, 1)]
    state = state_of(*evicted, of=job(RUN, suspend=True))
    assert (state.phase, state.cause) == (RunPhase.FAILED, Cause.DISRUPTION)


def test_recreated_pods_replace_the_first_ones() -> None:
    def made(found: dict[str, Any], at: str) -> dict[str, Any]:
        return found | {"metadata": found["metadata"] | {"creationTimestamp": f"2026-01-31T{at}Z"}}

    old = [made(deleted(ended(index, 137), "2026-01-31T12:02:00Z"), "12:00:00") for index in (0, 1)]
    new = [made(pod(index, "Running"), "12:30:00") for index in (0, 1)]
    for pods in ((*old, *new), (*new, *old)):
        state = state_of(*pods)
        assert (state.phase, state.has_failed_pod, state.peers_to_end) == (RunPhase.RUNNING, False, ())


def test_a_failed_run_keeps_the_last_lines_of_the_pod_that_decided() -> None:
    felt = termination_message(75, Cause.INFRASTRUCTURE, "lost a peer", is_effect=True)
    state = state_of(
        ended(0, 75, felt),
        ended(1, 1),
        logs={f"{RUN.name}-0": ("peer gone",), f"{RUN.name}-1": ("step 3", "KeyError: 'x'")},
    )
    assert (state.cause, state.last_log_lines) == (Cause.CRASH, ("step 3", "KeyError: 'x'"))


def test_run_whose_job_is_deleted_is_marked_deleting() -> None:
    found = job()
    found["metadata"]["deletionTimestamp"] = "2026-01-31T12:59:00Z"
    assert state_of(pod(0, "Running"), of=found).is_deleting
    assert not state_of(pod(0, "Running")).is_deleting


@pytest.mark.parametrize("time", ["", "yesterday", "2026-01-31T12:00:00", 5, None])
def test_odd_times_harm_nothing(time: Any) -> None:
    odd = deleted(pod(0, "Running", state={"running": {"startedAt": time}}), time)
    assert state_of(odd).phase in (RunPhase.RUNNING, RunPhase.FAILED)
