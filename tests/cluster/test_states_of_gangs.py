"""States of gangs as the real Job controller makes them: seen at every moment, a run ends once and for one cause."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_operator.launchers import LAUNCHERS, all_states
from dapt_operator.stage_run import Children, Owner, RunPhase, RunState, StageRun, plain
from dapt_operator.testing.objects import Ends
from support.launch_builders import ON_THE_CLUSTER, profile, resource, stage_run
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.pod_life import Life, ScriptedPod
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

CRASH = Ends(ExitCode.UNKNOWN, cause=Cause.CRASH, message="rank 1 failed at loop.py:3: KeyError: 'x'")
STUBBORN = Life(stop_seconds=3600.0)
"""Hangs in a collective: only SIGKILL ends it."""


class Gang:
    """A gang of two pods on the control plane, looked at as the operator does."""

    def __init__(self, plane: ControlPlane, namespace: str, *, grace_seconds: int = 30) -> None:
        self.api, self.namespace = plane.api, namespace
        manifest = plain(resource(**ON_THE_CLUSTER))
        manifest["metadata"]["namespace"] = namespace
        created = self.api.create(manifest)["metadata"]
        of = Owner(namespace=namespace, name=created["name"], uid=created["uid"])
        self.run: StageRun = stage_run("done", nodes=2, of=of)
        offered = profile(terminationGracePeriodSeconds=grace_seconds)
        claim, *others = LAUNCHERS["IndexedJob"].shared(offered, of, 2)
        for item in (claim, *others, *LAUNCHERS["IndexedJob"].render(self.run, offered, of)):
            self.api.create(item)
        self.seen: list[RunState] = []

    def look(self) -> RunState:
        """The state now; remembered."""
        children = Children(
            jobs=tuple(self.api.list("Job", self.namespace)), pods=tuple(self.api.list("Pod", self.namespace))
        )
        (state,) = all_states(children, datetime.now(UTC))
        self.seen.append(state)
        return state

    def still_there(self) -> bool:
        """Whether the Job is there; its state is looked at if so."""
        try:
            self.look()
        except ValueError:  # no Job, no state
            return False
        return True

    def until(self, holds: Callable[[RunState], bool], what: str) -> RunState:
        """Look again and again until a state is as wanted."""
        eventually(lambda: holds(self.look()), what)
        return self.seen[-1]

    def watch(self, seconds: float) -> None:
        """Go on looking while the Job controller finishes its work."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(0.05)

    def end_peers(self) -> None:
        """What the operator does with pods that wait in vain."""
        for name in self.seen[-1].peers_to_end:
            self.api.delete("Pod", name, self.namespace, grace_seconds=0)

    def ends(self) -> set[tuple[RunPhase, Cause | None, str]]:
        """Every end that was ever seen."""
        return {
            (state.phase, state.cause, state.message)
            for state in self.seen
            if state.phase in (RunPhase.FAILED, RunPhase.SUCCEEDED)
        }

    def job_conditions(self) -> set[str]:
        status: dict[str, Any] = self.api.get("Job", self.run.name, self.namespace).get("status") or {}
        return {item["type"] for item in status.get("conditions") or [] if item["status"] == "True"}


def test_a_crash_is_the_one_cause_at_every_moment(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    """Its peer hangs; the Job controller asks it to stop, we kill it, and the Job fails: in whatever order."""
    kubelet.script = lambda pod: Life(then=CRASH, run_seconds=0.5) if pod.index else STUBBORN
    gang = Gang(control_plane, namespace)
    gang.until(lambda state: bool(state.peers_to_end), "a peer that waits in vain")
    gang.end_peers()
    gang.until(lambda state: state.phase is RunPhase.FAILED, "the end")
    gang.until(lambda _: "Failed" in gang.job_conditions(), "the Job says so too")
    gang.watch(1.0)
    assert gang.ends() == {(RunPhase.FAILED, Cause.CRASH, CRASH.message)}


def test_the_job_controller_alone_gives_the_same_cause(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = lambda pod: Life(then=CRASH, run_seconds=0.5) if pod.index else STUBBORN
    gang = Gang(control_plane, namespace, grace_seconds=2)
    gang.until(lambda _: "Failed" in gang.job_conditions(), "the Job has failed")
    gang.watch(1.0)
    assert gang.ends() == {(RunPhase.FAILED, Cause.CRASH, CRASH.message)}


def test_run_is_failed_before_the_job_condition_is_set(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = lambda _: CRASH
    gang = Gang(control_plane, namespace)
    gang.until(lambda state: state.phase is RunPhase.FAILED, "the end")
    gang.until(lambda _: "Failed" in gang.job_conditions(), "the Job says so too")
    gang.watch(1.0)
    assert gang.ends() == {(RunPhase.FAILED, Cause.CRASH, CRASH.message)}


def test_gang_deleted_while_running_ends_as_stopped(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    gang = Gang(control_plane, namespace)
    gang.until(lambda state: state.phase is RunPhase.RUNNING, "running")
    eventually(lambda: len([pod for pod in kubelet.pods if pod.namespace == namespace]) == 2, "two pods")
    gang.api.delete("Job", gang.run.name, namespace, propagation="Foreground")
    eventually(lambda: not gang.still_there(), "the Job is gone with its pods")
    assert {cause for _, cause, _ in gang.ends()} <= {Cause.STOPPED}


def test_a_queue_that_takes_its_quota_back_costs_no_retry(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    """Kueue suspends the Job; one pod saves, the other is killed at the end of its grace period."""
    kubelet.script = lambda pod: STUBBORN if pod.index else Life()
    gang = Gang(control_plane, namespace, grace_seconds=2)
    running = lambda pod: pod["status"].get("phase") == "Running"  # noqa: E731
    eventually(lambda: sum(map(running, gang.api.list("Pod", namespace))) == 2, "two running pods")
    gang.look()
    gang.api.patch("Job", gang.run.name, {"spec": {"suspend": True}}, namespace)
    gang.until(lambda _: "Suspended" in gang.job_conditions(), "the Job is suspended")
    gang.until(lambda _: not gang.api.list("Pod", namespace), "its pods are gone")
    assert gang.look().phase is RunPhase.PENDING
    assert {cause for _, cause, _ in gang.ends()} <= {Cause.DISRUPTION, Cause.STOPPED}
    gang.api.patch("Job", gang.run.name, {"spec": {"suspend": False}}, namespace)
    gang.until(lambda state: state.phase is RunPhase.RUNNING, "it runs again")


def test_pod_on_a_lost_node_does_not_delay_the_end_of_the_run(
    control_plane: ControlPlane, namespace: str, kubelet: ScriptedKubelet
) -> None:
    """Its peer feels it; the lost pod stays Terminating for ever, since nobody answers for it."""
    felt = Ends(ExitCode.INFRASTRUCTURE, cause=Cause.INFRASTRUCTURE, message="no answer from rank 0")
    gang = Gang(control_plane, namespace)

    def is_running(pod: ScriptedPod) -> bool:
        return pod.namespace == namespace

    eventually(lambda: len([pod for pod in kubelet.pods if is_running(pod)]) == 2, "two pods")
    gang.until(lambda state: state.phase is RunPhase.RUNNING, "running")
    kubelet.freeze(lambda pod: is_running(pod) and pod.index == 0)
    kubelet.change(felt, lambda pod: is_running(pod) and pod.index == 1)
    gang.until(lambda state: bool(state.peers_to_end), "the lost pod waits in vain")
    gang.end_peers()
    state = gang.until(lambda state: state.phase is RunPhase.FAILED, "the end")
    assert state.cause is Cause.INFRASTRUCTURE
