"""Plays kubelet, scheduler, queue and Job controller for the cluster in memory, by a script."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import Final

from dapt_contract.pod import environment
from dapt_contract.pod.failure import FOREIGN_KEY, Cause, ExitCode
from dapt_contract.signature import key_digest
from dapt_contract.stage_file import StageFile
from dapt_operator.api.names import LABEL_NAME, LABEL_UID, work_claim_name
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.launchers.labels import QUEUE_LABEL
from dapt_operator.launchers.observe.containers import has_ended, is_over
from dapt_operator.launchers.render.environment import SIGNING_KEY
from dapt_operator.launchers.render.objects import STAGE_FILE_KEY
from dapt_operator.launchers.render.pod import CONTAINER
from dapt_operator.stage_run import JsonObject
from dapt_operator.testing import objects
from dapt_operator.testing.objects import Ends, Script, Stays, Stored

LOST_PEERS: Final = Ends(ExitCode.INFRASTRUCTURE, message="no such host", cause=Cause.INFRASTRUCTURE)
"""How a gang ends whose ranks cannot resolve each other's names."""


def stopped(stage: StageFile) -> Ends:  # noqa: ARG001
    """End a stage that saves after a stop request."""
    return Ends(ExitCode.STOPPED, message="stop requested", cause=Cause.STOPPED)


class MemoryKubelet:
    """Decides what happens to pods. A subclass holds the adaptations."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.queues: dict[str, str] = {}
        """Why a queue grants nothing, by its name; empty: it grants. A queue that is not here creates no Workload."""
        self.on_stop: Script = stopped
        """Ends a run whose Job is deleted while it runs."""

    def advance(self, seconds: float) -> None:
        """Move the time forward."""
        self.now += timedelta(seconds=seconds)

    def stage_file(self, stored: Stored, gang: JsonObject) -> StageFile:
        """Return the stage.json of the run of a gang."""
        name = gang["metadata"]["name"]
        text = stored.read_stage_files.get(name)
        if text is None:
            text = stored.objects[("ConfigMap", name)]["data"][STAGE_FILE_KEY]
        return StageFile.model_validate_json(text)

    def run_gangs(self, stored: Stored, script: Script, seconds: float) -> int:
        """Do with every live run what the script returns for it; return the number of runs that ended."""
        ended = 0
        for gang in stored.gangs():
            if gang["metadata"].get("deletionTimestamp"):
                ended += self._stop(stored, gang, seconds)
            elif not objects.may_run(gang, pods := stored.pods_of(gang["metadata"]["name"])):
                if all(is_over(pod) for pod in pods):
                    self._notice_end(gang)
            elif gang["spec"].get("suspend"):
                self._admit(gang)
            elif missing := self._missing_volume(stored, gang):
                self._create_waiting_pods(stored, gang, missing)
            else:
                ended += self._run(stored, gang, script, seconds)
        return ended

    def fail_pod(self, stored: Stored, gang: JsonObject, index: int, outcome: Ends) -> None:
        """End one pod by itself while its peers continue; the Job controller has not noticed yet."""
        self.start_pods(stored, gang)
        name = f"{gang['metadata']['name']}-{index}"
        pod = stored.objects[("Pod", name)]
        started = objects.started_at(pod) or timestamp(self.now)
        stage = self.stage_file(stored, gang)
        pod["status"] = objects.ended_status(stage, outcome, started, timestamp(self.now))

    def start_pods(self, stored: Stored, gang: JsonObject) -> None:
        """Start all pods of a gang."""
        self._read_stage_file(stored, gang)
        for index in range(int(objects.job_spec(gang)["completions"])):
            old = stored.objects.get(("Pod", f"{gang['metadata']['name']}-{index}"))
            if old is None or old["status"].get("phase") == "Pending":
                self._put_pod(stored, gang, index, objects.running_status(timestamp(self.now)))

    def delete_gang(self, stored: Stored, gang: JsonObject, *, gracefully: bool) -> None:
        """Delete a gang in the foreground: the object exists until its pods are gone."""
        name = gang["metadata"]["name"]
        alive = [pod for pod in stored.pods_of(name) if not has_ended(pod)]
        if not gracefully or not alive:
            self._collect(stored, gang)
            return
        gang["metadata"]["deletionTimestamp"] = timestamp(self.now)
        for pod in alive:
            grace_seconds = int(objects.job_spec(gang)["template"]["spec"]["terminationGracePeriodSeconds"])
            pod["metadata"] |= {
                "deletionTimestamp": timestamp(self.now + timedelta(seconds=grace_seconds)),
                "deletionGracePeriodSeconds": grace_seconds,
            }

    def kill_overdue(self, stored: Stored) -> None:
        """Remove deleted gangs whose grace period is over: what has not ended by then is killed without a message."""
        now = timestamp(self.now)
        for gang in stored.gangs():
            pods = [pod for pod in stored.pods_of(gang["metadata"]["name"]) if not has_ended(pod)]
            is_deleted = bool(gang["metadata"].get("deletionTimestamp"))
            # Timestamps of one form and one zone are ordered as text is.
            if is_deleted and all(pod["metadata"].get("deletionTimestamp", now) < now for pod in pods):
                self._collect(stored, gang)

    # --- inside ---

    def _notice_end(self, gang: JsonObject) -> None:
        """Fail a gang whose pods have failed, as the Job controller does; the planner has seen the pods before."""
        if not objects.is_over(gang):
            now = timestamp(self.now)
            gang["status"] = objects.gang_status(gang, done=False, started=now, finished=now)

    def _missing_volume(self, stored: Stored, gang: JsonObject) -> str:
        """Return what the kubelet reports of an object of ours that a volume names and that does not exist.

        Empty when there is none, and for pods that have started: they do not miss it any more.
        """
        name, labels = gang["metadata"]["name"], gang["metadata"]["labels"]
        if name in stored.read_stage_files:
            return ""
        claim = work_claim_name(labels[LABEL_NAME], labels[LABEL_UID])
        needed = [("ConfigMap", name)]
        for volume in objects.job_spec(gang)["template"]["spec"]["volumes"]:
            if "secret" in volume:
                needed.append(("Secret", volume["secret"]["secretName"]))
            if (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim:
                needed.append(("PersistentVolumeClaim", claim))
        missing = next((place for place in needed if place not in stored.objects), None)
        return f'FailedMount: {missing[0].lower()} "{missing[1]}" not found' if missing is not None else ""

    def _create_waiting_pods(self, stored: Stored, gang: JsonObject, missing: str) -> None:
        """Create the pods of a gang, which wait on their nodes for a volume."""
        waiting = objects.pending_status(Stays(waiting=missing))
        for index in range(int(objects.job_spec(gang)["completions"])):
            self._put_pod(stored, gang, index, waiting)

    def _read_stage_file(self, stored: Stored, gang: JsonObject) -> None:
        name = gang["metadata"]["name"]
        # A pod that has started keeps what it has mounted, whatever becomes of the ConfigMap.
        if name not in stored.read_stage_files:
            text = stored.objects[("ConfigMap", name)]["data"][STAGE_FILE_KEY]
            stored.read_stage_files[name] = text

    def _cannot_resolve_peers(self, stored: Stored, gang: JsonObject) -> bool:
        """Whether ranks on several nodes look for each other below a Service that does not exist."""
        subdomain = objects.job_spec(gang)["template"]["spec"].get("subdomain")
        has_started = gang["metadata"]["name"] in stored.read_stage_files
        return bool(subdomain) and not has_started and ("Service", subdomain) not in stored.objects

    def _refusal_of_key(self, stored: Stored, gang: JsonObject) -> Ends | None:
        """Return how pods end that find a signing key which the operator did not make; None for all others."""
        spec = objects.job_spec(gang)["template"]["spec"]
        trainer = next(item for item in spec["containers"] if item["name"] == CONTAINER)
        variables = {item["name"]: item.get("value", "") for item in trainer["env"]}
        digests = variables.get(environment.SIGNING_KEY_DIGESTS, "")
        if not digests or gang["metadata"]["name"] in stored.read_stage_files:
            return None
        name = variables[environment.SIGNING_SECRET]
        key = base64.b64decode(stored.objects["Secret", name]["data"][SIGNING_KEY])
        if key_digest(key) in digests.split(","):
            return None
        return Ends(
            ExitCode.BAD_INPUT, message=f"Secret {name} {FOREIGN_KEY}: delete it", cause=Cause.BAD_INPUT
        )

    def _admit(self, gang: JsonObject) -> None:
        if self.queues.get(gang["metadata"]["labels"].get(QUEUE_LABEL, "")) == "":
            gang["spec"]["suspend"] = False

    def _run(self, stored: Stored, gang: JsonObject, script: Script, seconds: float) -> int:
        stage = self.stage_file(stored, gang)
        failure = LOST_PEERS if self._cannot_resolve_peers(stored, gang) else None
        outcome = failure or self._refusal_of_key(stored, gang) or script(stage)
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

    def _stop(self, stored: Stored, gang: JsonObject, seconds: float) -> int:
        """End the pods of a deleted gang with their termination messages; then remove the gang."""
        name = gang["metadata"]["name"]
        alive = [pod for pod in stored.pods_of(name) if not has_ended(pod)]
        if not alive:
            self._collect(stored, gang)
            return 1
        self.advance(seconds)
        # Those that did not end within their grace period were killed meanwhile.
        for pod in [pod for pod in stored.pods_of(name) if not has_ended(pod)]:
            started = objects.started_at(pod)
            # It never ran, so it has no termination message; or nobody knows any more what it would say.
            if started is None or name not in stored.read_stage_files:
                del stored.objects[("Pod", pod["metadata"]["name"])]
                continue
            stage = self.stage_file(stored, gang)
            outcome = self.on_stop(stage)
            if not isinstance(outcome, Ends):
                raise TypeError("on_stop must return Ends: the run is stopped")
            pod["status"] = objects.ended_status(stage, outcome, started, timestamp(self.now))
        return 1

    def _collect(self, stored: Stored, gang: JsonObject) -> None:
        name = gang["metadata"]["name"]
        stored.objects.pop((gang["kind"], name), None)
        for pod in stored.pods_of(name):
            del stored.objects[("Pod", pod["metadata"]["name"])]

    def _put_pod(self, stored: Stored, gang: JsonObject, index: int, status: JsonObject) -> None:
        pod = objects.pod_of(gang, index, status)
        stored.objects[("Pod", pod["metadata"]["name"])] = pod

    def _end(self, stored: Stored, gang: JsonObject, stage: StageFile, outcome: Ends, seconds: float) -> None:
        first = stored.objects.get(("Pod", f"{gang['metadata']['name']}-0"))
        started = objects.started_at(first) or timestamp(self.now)
        self.advance(seconds)
        finished = timestamp(self.now)
        status = objects.ended_status(stage, outcome, started, finished)
        for index in range(int(objects.job_spec(gang)["completions"])):
            self._put_pod(stored, gang, index, status)
        if outcome.lingers:
            return
        done = outcome.exit_code == 0 and not outcome.disrupted
        gang["status"] = objects.gang_status(gang, done=done, started=started, finished=finished)
