"""From the objects of a run to its state."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.message import RunEnd, encode_message
from dapt_contract.pod.progress import Progress
from dapt_operator.launchers.indexed_job import states
from dapt_operator.stage_run import Children, RunPhase
from support.gang_objects import (
    DISRUPTED,
    FACTS,
    NOW,
    RUN,
    SUCCESS,
    ended,
    job,
    pod,
    state_of,
    termination_message,
)
from support.launch_builders import stage_run


def test_a_success_has_the_first_pods_facts_and_the_times_of_all_pods() -> None:
    state = state_of(ended(0, 0, SUCCESS, at=10), ended(1, 0, at=20))
    assert state.phase is RunPhase.SUCCEEDED
    assert state.facts == FACTS
    assert state.exit_code == 0
    assert state.identity == RUN.identity
    assert state.config_digest == RUN.stage_file.config_digest
    assert state.created == datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
    assert state.started == datetime(2026, 1, 31, 12, 0, 5, tzinfo=UTC)
    assert state.completed == datetime(2026, 1, 31, 12, 1, 20, tzinfo=UTC)


def test_a_run_of_which_one_pod_is_done_still_runs() -> None:
    assert state_of(ended(0, 0, SUCCESS), pod(1, "Running")).phase is RunPhase.RUNNING


def test_run_with_a_failed_pod_is_running_while_its_peer_runs() -> None:
    assert state_of(ended(0, 75), pod(1, "Running")).phase is RunPhase.RUNNING


def test_a_failed_job_counts_also_while_a_peer_is_being_deleted() -> None:
    state = state_of(
        ended(0, 75), pod(1, "Running"), of=job(RUN, {"type": "Failed", "reason": "BackoffLimitExceeded"})
    )
    assert state.phase is RunPhase.FAILED


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (64, Cause.BAD_INPUT),
        (70, Cause.OUT_OF_MEMORY),
        (75, Cause.INFRASTRUCTURE),
        (76, Cause.FORGETTING_LIMIT),
        (77, Cause.DIVERGED),
        (143, Cause.STOPPED),
        (137, Cause.INFRASTRUCTURE),
        (1, Cause.CRASH),
        (2, Cause.CRASH),
    ],
)
def test_an_exit_code_has_its_cause(code: int, cause: Cause) -> None:
    state = state_of(ended(0, code), ended(1, code))
    assert (state.phase, state.cause, state.exit_code) == (RunPhase.FAILED, cause, code)
    assert state.message == f"the container ended with exit code {code} (no termination message)"


@pytest.mark.parametrize(
    ("first", "second", "cause"),
    [
        (75, 64, Cause.BAD_INPUT),
        (76, 77, Cause.DIVERGED),
        (70, 76, Cause.FORGETTING_LIMIT),
        (75, 70, Cause.OUT_OF_MEMORY),
        (1, 75, Cause.INFRASTRUCTURE),
    ],
)
def test_the_first_cause_by_precedence_counts(first: int, second: int, cause: Cause) -> None:
    assert state_of(ended(0, first), ended(1, second)).cause is cause
    assert state_of(ended(0, second), ended(1, first)).cause is cause


def test_peers_that_were_stopped_do_not_hide_a_crash() -> None:
    crash = termination_message(1, Cause.CRASH, "rank 1 failed at loop.py:3: KeyError: 'x'")
    state = state_of(ended(0, 143, termination_message(143, Cause.STOPPED, "stopped")), ended(1, 1, crash))
    assert (state.cause, state.message) == (Cause.CRASH, "rank 1 failed at loop.py:3: KeyError: 'x'")


def test_a_broken_collective_does_not_hide_the_crash_that_broke_it() -> None:
    effect = termination_message(75, Cause.INFRASTRUCTURE, "rank 0 lost its peers", is_effect=True)
    crash = termination_message(1, Cause.CRASH, "rank 1 failed at loop.py:3: KeyError: 'x'")
    assert state_of(ended(0, 75, effect, at=1), ended(1, 1, crash, at=9)).cause is Cause.CRASH
    assert state_of(ended(0, 75, effect), ended(1, 75, effect)).cause is Cause.INFRASTRUCTURE


def test_a_container_that_the_kernel_killed_for_memory_ran_out_of_memory() -> None:
    assert state_of(ended(0, 137, reason="OOMKilled"), ended(1, 75)).cause is Cause.OUT_OF_MEMORY


def test_hang_is_recognized_by_the_termination_message() -> None:
    state = state_of(ended(0, 75, termination_message(75, Cause.HANG, "rank 0 was silent")), ended(1, 143))
    assert (state.cause, state.message) == (Cause.HANG, "rank 0 was silent")


@pytest.mark.parametrize("code", [137, 143, 75, 1])
def test_a_pod_that_was_taken_away_is_a_disruption(code: int) -> None:
    state = state_of(ended(0, code, **DISRUPTED), ended(1, 75))
    assert (state.cause, state.message) == (Cause.DISRUPTION, "EvictionByEvictionAPI: drained")


def test_bad_input_stays_bad_input_on_a_drained_node() -> None:
    assert state_of(ended(0, 64, **DISRUPTED), ended(1, 143)).cause is Cause.BAD_INPUT


def test_a_deadline_is_the_cause_of_what_it_stopped() -> None:
    over = job(RUN, {"type": "Failed", "reason": "DeadlineExceeded", "message": "Job was active longer"})
    state = state_of(ended(0, 143, termination_message(143, Cause.STOPPED, "saved")), ended(1, 137), of=over)
    assert (state.cause, state.message) == (Cause.DEADLINE, "Job was active longer")


def test_a_deadline_does_not_hide_a_divergence() -> None:
    over = job(RUN, {"type": "Failed", "reason": "DeadlineExceeded"})
    assert state_of(ended(0, 77), ended(1, 143), of=over).cause is Cause.DIVERGED


def test_a_failed_job_without_pods_is_infrastructure() -> None:
    state = state_of(of=job(RUN, {"type": "Failed", "reason": "BackoffLimitExceeded"}))
    assert (state.cause, state.message) == (Cause.INFRASTRUCTURE, "the Job failed and its pods are gone")


def test_container_start_error_is_reported_with_its_message() -> None:
    state = state_of(
        ended(0, 128, "no such file: python", reason="StartError"), ended(1, 128, "x", reason="StartError")
    )
    assert (state.cause, state.message) == (Cause.INFRASTRUCTURE, "StartError: no such file: python")


def test_failed_pretraining_reports_its_facts() -> None:
    text = termination_message(77, Cause.DIVERGED, "loss is nan", facts=FACTS)
    assert state_of(ended(0, 77, text), ended(1, 75)).facts == FACTS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no termination message"),
        ("{" * 5000, "termination message longer than 4,096 bytes"),
        ("not json", "not a termination message: Invalid JSON: expected ident at line 1 column 2"),
        (encode_message("other", "publish", facts=FACTS), "the termination message is that of another run"),
        (encode_message(RUN.identity.key, "verify"), "the termination message is that of another run"),
        (encode_message(RUN.identity.key, "publish"), "it holds no facts"),
        (
            f'{{"key": "{RUN.identity.key}", "kind": "publish", "facts": {{"files": "many"}}}}',
            "termination message of publish: destination: Field required",
        ),
    ],
)
def test_a_success_whose_message_is_lost_is_tried_again(text: str, why: str) -> None:
    state = state_of(ended(0, 0, text), ended(1, 0))
    assert (state.phase, state.cause, state.facts) == (RunPhase.FAILED, Cause.CRASH, None)
    assert state.message == (
        f"the run succeeded but its termination message is lost ({why}); a retry repeats it from the report"
    )


def test_a_complete_job_whose_pods_are_gone_has_lost_its_message() -> None:
    state = state_of(of=job(RUN, {"type": "Complete"}))
    assert state.phase is RunPhase.FAILED
    assert "(the pod is gone)" in state.message


def test_a_claim_of_success_in_a_failed_pod_is_not_believed() -> None:
    state = state_of(ended(0, 1, SUCCESS), ended(1, 1))
    assert (state.phase, state.cause) == (RunPhase.FAILED, Cause.CRASH)


def test_unreadable_stage_file_is_reported_with_the_message_of_the_agent() -> None:
    text = encode_message("", "publish", RunEnd(64, Cause.BAD_INPUT, "stage.json: was altered"))
    assert state_of(ended(0, 64, text), ended(1, 143)).message == "stage.json: was altered"


def test_a_long_sentence_is_cut() -> None:
    text = json.dumps({"key": RUN.identity.key, "kind": "publish", "exit_code": 64, "message": "x" * 3900})
    assert len(state_of(ended(0, 64, text), ended(1, 143)).message) == 3900


@pytest.mark.parametrize(
    ("found", "reason", "message"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes",
                    }
                ]
            },
            "Unschedulable",
            "Unschedulable: 0/3 nodes",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "trainer",
                        "state": {
                            "waiting": {
                                "reason": "CreateContainerConfigError",
                                "message": 'secret "dapt-s3" not found',
                            }
                        },
                    }
                ]
            },
            "CreateContainerConfigError",
            'CreateContainerConfigError: secret "dapt-s3" not found',
        ),
        ({}, "", ""),
    ],
)
def test_pending_run_reports_what_it_waits_for(found: dict[str, Any], reason: str, message: str) -> None:
    waits = pod(0, "Pending")
    waits["status"] = {"phase": "Pending"} | found
    state = state_of(waits)
    assert (state.phase, state.waiting_reason, state.message) == (RunPhase.PENDING, reason, message)


def test_job_without_pods_is_pending_and_reports_suspension() -> None:
    assert state_of().phase is RunPhase.PENDING
    assert state_of(of=job(RUN, suspend=True)).waiting_reason == "Suspended"


def test_states_come_in_the_order_of_their_fences_and_take_only_their_own_pods() -> None:
    first, second = stage_run(fence=4), stage_run(try_number=2, fence=5)
    progress = {second.name: Progress(run_key=second.identity.key, stage="publish", step=3)}
    found = states(
        Children(
            jobs=(job(second), job(first)),
            pods=(ended(0, 75, run=first), pod(0, "Running", second), {"metadata": {"name": "stranger"}}),
            progress=progress,
        ),
        NOW,
    )
    assert [(state.identity.fence, state.phase) for state in found] == [
        (4, RunPhase.FAILED),
        (5, RunPhase.RUNNING),
    ]
    assert found[1].progress == progress[second.name]


def test_foreign_job_is_no_run() -> None:
    assert states(Children(jobs=({"metadata": {"name": "x"}, "spec": {}},)), NOW) == ()


def test_accelerators_are_those_of_all_pods() -> None:
    run = stage_run(nodes=2, accelerators=8)
    (state,) = states(Children(jobs=(job(run),)), NOW)
    assert state.accelerators == 16
    assert state_of().accelerators == 0
