"""The scripted kubelet, scheduler, queue and Job controller of the cluster in memory."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from dapt_contract.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.testing import objects
from dapt_operator.testing.objects import Ends, Script, Stored, time_text


def stopped(stage: StageFile) -> Ends:  # noqa: ARG001
    """How a stage ends that is asked to stop and saves."""
    return Ends(143, message="asked to stop", cause=Cause.STOPPED)


class MemoryKubelet:
    """What happens to pods. A subclass holds the adaptations."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.queues: dict[str, str] = {}
        """By name of a queue: why it grants nothing; empty: it grants. A queue that is not here says nothing."""
        self.on_stop: Script = stopped
        """What becomes of a run whose Job is deleted while it runs."""

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def stage_file(self, stored: Stored, gang: dict[str, Any]) -> StageFile:
        """What the run of a gang was told."""
        text = stored.objects[("ConfigMap", gang["metadata"]["name"])]["data"]["stage.json"]
        return StageFile.model_validate_json(text)

    def run_gangs(self, stored: Stored, script: Script, seconds: float) -> int:
        """Give every live run what the script says; returns how many have ended or gone."""
        ended = 0
        for gang in stored.gangs():
            if gang["metadata"].get("deletionTimestamp"):
                ended += self._stop(stored, gang, seconds)
            elif not objects.may_run(gang, stored.pods_of(gang["metadata"]["name"])):
                self._notice_end(gang)
            elif gang["spec"].get("suspend"):
                self._admit(gang)
            elif ("ConfigMap", gang["metadata"]["name"]) not in stored.objects:
                continue  # the kubelet waits for the volume
            else:
                ended += self._run(stored, gang, script, seconds)
        return ended

    def fail_pod(self, stored: Stored, gang: dict[str, Any], index: int, outcome: Ends) -> None:
        """One pod ends by itself while its peers go on; the Job controller has not noticed yet."""
        self.start_pods(stored, gang)
        name = f"{gang['metadata']['name']}-{index}"
        pod = stored.objects[("Pod", name)]
        started = objects.started_at(pod) or time_text(self.now)
        stage = self.stage_file(stored, gang)
        pod["status"] = objects.ended_status(stage, outcome, started, time_text(self.now))

    def start_pods(self, stored: Stored, gang: dict[str, Any]) -> None:
        """All pods of a gang run."""
        for index in range(int(objects.job_spec(gang)["completions"])):
            old = stored.objects.get(("Pod", f"{gang['metadata']['name']}-{index}"))
            if old is None or old["status"].get("phase") == "Pending":
                self._put_pod(stored, gang, index, objects.running_status(time_text(self.now)))

    def delete_gang(self, stored: Stored, gang: dict[str, Any], *, gracefully: bool) -> None:
        """Foreground deletion: the object is there until its pods are gone."""
        name = gang["metadata"]["name"]
        alive = [pod for pod in stored.pods_of(name) if objects.is_alive(pod)]
        if not gracefully or not alive:
            self._collect(stored, gang)
            return
        gang["metadata"]["deletionTimestamp"] = time_text(self.now)
        for pod in alive:
            pod["metadata"] |= {
                "deletionTimestamp": time_text(self.now + timedelta(seconds=120)),
                "deletionGracePeriodSeconds": 120,
            }

    # --- inside ---

    def _notice_end(self, gang: dict[str, Any]) -> None:
        """The Job controller sees, after the planner, that the pods have failed."""
        if not objects.is_over(gang):
            now = time_text(self.now)
            gang["status"] = objects.gang_status(gang, done=False, started=now, finished=now)

    def _admit(self, gang: dict[str, Any]) -> None:
        if self.queues.get(gang["metadata"]["labels"].get(objects.QUEUE_LABEL, "")) == "":
            gang["spec"]["suspend"] = False

    def _run(self, stored: Stored, gang: dict[str, Any], script: Script, seconds: float) -> int:
        stage = self.stage_file(stored, gang)
        outcome = script(stage)
        if isinstance(outcome, Ends):
            self._end(stored, gang, stage, outcome, seconds)
            return 1
        name = gang["metadata"]["name"]
        if outcome.pending_reason or outcome.waiting:
            self._put_pod(stored, gang, 0, objects.pending_status(outcome))
            return 0
        self.start_pods(stored, gang)
        if outcome.progress is not None:
            stored.progress[name] = outcome.progress
        return 0

    def _stop(self, stored: Stored, gang: dict[str, Any], seconds: float) -> int:
        """The pods of a deleted gang say their last words; then all of it goes."""
        name = gang["metadata"]["name"]
        alive = [pod for pod in stored.pods_of(name) if objects.is_alive(pod)]
        if not alive:
            self._collect(stored, gang)
            return 1
        self.advance(seconds)
        for pod in alive:
            started = objects.started_at(pod)
            if started is None:  # it had not started: nothing to say
                del stored.objects[("Pod", pod["metadata"]["name"])]
                continue
            stage = self.stage_file(stored, gang)
            outcome = self.on_stop(stage)
            assert isinstance(outcome, Ends)
            pod["status"] = objects.ended_status(stage, outcome, started, time_text(self.now))
        return 1

    def _collect(self, stored: Stored, gang: dict[str, Any]) -> None:
        name = gang["metadata"]["name"]
        stored.objects.pop((gang["kind"], name), None)
        for pod in stored.pods_of(name):
            del stored.objects[("Pod", pod["metadata"]["name"])]

    def _put_pod(self, stored: Stored, gang: dict[str, Any], index: int, status: dict[str, Any]) -> None:
        pod = objects.pod_of(gang, index, status)
        stored.objects[("Pod", pod["metadata"]["name"])] = pod

    def _end(
        self, stored: Stored, gang: dict[str, Any], stage: StageFile, outcome: Ends, seconds: float
    ) -> None:
        first = stored.objects.get(("Pod", f"{gang['metadata']['name']}-0"))
        started = objects.started_at(first) or time_text(self.now)
        self.advance(seconds)
        finished = time_text(self.now)
        status = objects.ended_status(stage, outcome, started, finished)
        for index in range(int(objects.job_spec(gang)["completions"])):
            self._put_pod(stored, gang, index, status)
        done = outcome.exit_code == 0 and not outcome.disrupted
        gang["status"] = objects.gang_status(gang, done=done, started=started, finished=finished)
