"""Tests that the trainer decides, whatever becomes of the other containers of its pod: sidecars, init containers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.cluster.kubernetes.cache.projection import project
from dapt_operator.stage_run import RunPhase
from support.gang_objects import (
    FACTS,
    RUN,
    SUCCESS,
    ended,
    job,
    job_set,
    pod,
    state_of,
    termination_message,
)

RUNNING = {"running": {"startedAt": "2026-01-31T12:00:05Z"}}
PROXY_RUNS = {"running": {"startedAt": "2026-01-31T12:00:01Z"}}
PROXY_KILLED = {"terminated": {"exitCode": 143, "reason": "Error", "finishedAt": "2026-01-31T12:00:09Z"}}
STARTS = {"waiting": {"reason": "PodInitializing"}}


def with_sidecar(found: dict[str, Any], state: dict[str, Any], phase: str) -> dict[str, Any]:
    """The pod with a container that a webhook has added, first in the list; `phase`: as the kubelet computes it."""
    found = copy.deepcopy(found)
    found["status"]["containerStatuses"].insert(0, {"name": "proxy", "image": "proxy:1", "state": state})
    found["status"]["phase"] = phase
    return found


def with_init(index: int, state: dict[str, Any], phase: str = "Pending", **more: Any) -> dict[str, Any]:
    """A pod whose trainer waits for its init container."""
    found = pod(index, phase, state=STARTS)
    init = {"name": "fetch", "image": "fetch:1", "state": state} | more
    found["status"] |= {"initContainerStatuses": [init]}
    return found


@pytest.mark.parametrize("make", [job, job_set], ids=["Job", "JobSet"])
def test_run_succeeds_while_sidecars_go_on(make: Any) -> None:
    pods = [with_sidecar(item, PROXY_RUNS, "Running") for item in (ended(0, 0, SUCCESS), ended(1, 0))]
    state = state_of(*pods, of=make())
    assert (state.phase, state.facts, state.is_live) == (RunPhase.SUCCEEDED, FACTS, False)
    assert state.lingering_pods == (f"{RUN.name}-0", f"{RUN.name}-1")


def test_sidecar_that_is_killed_does_not_turn_a_finished_run_into_a_crash() -> None:
    pods = [with_sidecar(item, PROXY_KILLED, "Failed") for item in (ended(0, 0, SUCCESS), ended(1, 0))]
    over = job(RUN, {"type": "Failed", "reason": "BackoffLimitExceeded", "message": "Job has reached it"})
    for of in (job(), over):
        state = state_of(*pods, of=of)
        assert (state.phase, state.facts, state.lingering_pods) == (RunPhase.SUCCEEDED, FACTS, ())


def test_trainer_that_fails_next_to_a_sidecar_fails_the_run_with_its_message() -> None:
    text = termination_message(64, Cause.BAD_INPUT, "corpus.jsonl line 3 is no JSON")
    failed = with_sidecar(ended(0, 64, text), PROXY_RUNS, "Running")
    peer = with_sidecar(pod(1, "Running", state=RUNNING), PROXY_RUNS, "Running")
    state = state_of(failed, peer)
    assert (state.phase, state.peers_to_end) == (RunPhase.RUNNING, (f"{RUN.name}-1",))
    state = state_of(failed, with_sidecar(ended(1, 75), PROXY_RUNS, "Running"))
    assert (state.phase, state.cause) == (RunPhase.FAILED, Cause.BAD_INPUT)
    assert state.message == "corpus.jsonl line 3 is no JSON"


@pytest.mark.parametrize("proxy", [PROXY_RUNS, PROXY_KILLED], ids=["runs", "failed"])
def test_gang_waits_while_only_its_sidecars_have_started(proxy: dict[str, Any]) -> None:
    waits = {"waiting": {"reason": "ContainerCreating"}}
    state = state_of(*(with_sidecar(pod(index, "", state=waits), proxy, "Running") for index in (0, 1)))
    assert (state.phase, state.started, state.lingering_pods) == (RunPhase.PENDING, None, ())


def test_sidecar_that_fails_while_the_trainer_runs_changes_nothing() -> None:
    state = state_of(
        *(with_sidecar(pod(index, "", state=RUNNING), PROXY_KILLED, "Running") for index in (0, 1))
    )
    assert (state.phase, state.has_failed_pod, state.peers_to_end) == (RunPhase.RUNNING, False, ())


def test_init_container_that_fails_is_named() -> None:
    end = {"terminated": {"exitCode": 2, "reason": "Error", "message": "no route to the registry"}}
    state = state_of(with_init(0, end, "Failed"), with_init(1, end, "Failed"))
    assert (state.phase, state.cause) == (RunPhase.FAILED, Cause.INFRASTRUCTURE)
    assert state.message == "init container fetch ended with exit code 2: no route to the registry"


@pytest.mark.parametrize(
    ("state", "message", "hindrance"),
    [
        (
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting failed container=fetch"
                         " pod=a-0-x7k2p_health(0b7c8a52-9d1e-4b6e-8c4f-2f1f6a3d9e10)"}},
            "CrashLoopBackOff: back-off restarting failed container (init container fetch)",
            None,
        ),
        (
            {"waiting": {"reason": "CreateContainerConfigError", "message": 'configmap "proxy" not found'}},
            'CreateContainerConfigError: configmap "proxy" not found (init container fetch)',
            None,
        ),
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
            "ImagePullBackOff: Back-off pulling image (init container fetch)",
            "image fetch:1 of init container fetch cannot be pulled (ImagePullBackOff: Back-off pulling image):"
            " correct it where it is set, the profile's podTemplate or the webhook that adds the container",
        ),
        ({"running": {}}, "PodInitializing: init container fetch runs", None),
    ],
    ids=["crashes", "configuration", "image", "runs"],
)  # fmt: skip
def test_pod_says_which_init_container_it_waits_for(
    state: dict[str, Any], message: str, hindrance: str | None
) -> None:
    found = state_of(with_init(0, state), with_init(1, state))
    assert (found.phase, found.message) == (RunPhase.PENDING, message)
    assert (found.hindrance.message if found.hindrance else None) == hindrance


def test_native_sidecar_that_has_started_is_not_waited_for() -> None:
    assert state_of(with_init(0, {"running": {}}, started=True)).message == "PodInitializing"


def test_sidecar_image_is_a_reason_to_wait_only_before_the_trainer_runs() -> None:
    pull = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    waits = state_of(with_sidecar(pod(0, "", state=STARTS), pull, "Pending"))
    assert waits.message == "ErrImagePull: not found (sidecar proxy)"
    assert waits.hindrance is not None
    assert waits.hindrance.message.startswith("image proxy:1 of sidecar proxy cannot be pulled")
    runs = state_of(*(with_sidecar(pod(index, "", state=RUNNING), pull, "Pending") for index in (0, 1)))
    assert (runs.phase, runs.message, runs.hindrance) == (RunPhase.RUNNING, "", None)


@pytest.mark.parametrize(
    "pods",
    [
        (with_sidecar(ended(0, 0, SUCCESS), PROXY_RUNS, "Running"), ended(1, 0)),
        (with_init(0, {"running": {}}, started=True), with_init(1, {"waiting": {"reason": "CrashLoopBackOff"}})),
    ],
    ids=["lingering", "init"],
)  # fmt: skip
def test_projected_pods_give_the_same_state(pods: tuple[dict[str, Any], ...]) -> None:
    assert state_of(*(project({"kind": "Pod", **item}) for item in pods)) == state_of(*pods)
