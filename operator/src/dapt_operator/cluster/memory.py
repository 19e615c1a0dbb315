"""A cluster in memory for tests: the five verbs, a scripted kubelet, and a checker that refuses impossible worlds.

Time stands still unless a test moves it. Objects are created once where Kubernetes would refuse a second creation;
statuses carry resource versions; a crash can be planted before or after any verb.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dapt_contract.base import Contract
from dapt_contract.failure import Cause
from dapt_contract.message import encode_message
from dapt_contract.progress import Progress
from dapt_contract.stage_file import StageFile
from dapt_operator.api.run import Children, Manifest
from dapt_operator.cluster.memory_checks import (
    ImpossibleWorldError,
    check_deletion,
    check_history,
    check_new_job,
    key_of,
)
from dapt_operator.cluster.port import Conflict, Event, Key, ObjectReference, World

START = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
CREATED_ONCE = frozenset({"Job", "Secret", "ConfigMap", "PersistentVolumeClaim", "Service"})


class OperatorKilledError(Exception):
    """The operator was killed here."""


@dataclass(frozen=True)
class Ends:
    """How the scripted kubelet ends a run."""

    exit_code: int = 0
    facts: Contract | None = None
    message: str = ""
    cause: Cause | None = None
    oom_killed: bool = False
    disrupted: bool = False
    lose_message: bool = False


@dataclass(frozen=True)
class Stays:
    """The run goes on, with this reading."""

    progress: Progress | None = None
    pending_reason: str = ""


Script = Callable[[StageFile], Ends | Stays]
"""What becomes of a run."""


@dataclass
class _Stored:
    resource: dict[str, Any]
    version: int = 1
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    progress: dict[str, Progress] = field(default_factory=dict)


class MemoryCluster:
    """The port of tests."""

    def __init__(self) -> None:
        self.now = START
        self.profiles: dict[str, dict[str, Any]] = {}
        self.verbs: list[str] = []
        self.crash_at: int | None = None
        """Number of the writing verb at which the operator is killed."""
        self.crash_after = False
        """Whether it dies after the verb took effect."""
        self.touch_before_status = 0
        """So many status writes find that somebody wrote in between."""
        self.created: list[str] = []
        """Keys of all runs ever created, in order."""
        self.writes = 0
        self._stored: dict[Key, _Stored] = {}
        self._uids = 0

    # --- what a person does ---

    def add_profile(self, manifest: Manifest) -> None:
        """Create or replace a profile."""
        self.profiles[manifest["metadata"]["name"]] = _copy(manifest)

    def add(self, manifest: Manifest) -> Key:
        """Create a DomainAdaptation; it gets a uid of its own."""
        metadata = manifest["metadata"]
        key = Key(metadata.get("namespace", "default"), metadata["name"])
        self._uids += 1
        resource = _copy(manifest)
        resource["metadata"] |= {"namespace": key.namespace, "uid": f"{self._uids:08d}-uid", "generation": 1}
        self._stored[key] = _Stored(resource)
        return key

    def edit(self, key: Key, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the spec as `kubectl edit` does: the generation rises."""
        stored = self._stored[key]
        change(stored.resource["spec"])
        stored.resource["metadata"]["generation"] += 1
        stored.version += 1

    def touch(self, key: Key) -> None:
        """Somebody changes a label: the resource version rises."""
        self._stored[key].version += 1

    def remove(self, key: Key) -> None:
        """Delete the resource; its children go with it."""
        del self._stored[key]

    # --- the five verbs ---

    def observe(self, key: Key) -> World:
        """Everything, as it is now."""
        stored = self._stored.get(key)
        if stored is None:
            return World(self.now, None, None, Children())
        resource = _copy(stored.resource)
        resource["metadata"]["resourceVersion"] = str(stored.version)
        name = resource["spec"].get("profile")
        profile = self.profiles.get(name) if name else next(iter(self.profiles.values()), None)
        jobs = [_copy(item) for (kind, _), item in stored.objects.items() if kind == "Job"]
        pods = [_copy(item) for (kind, _), item in stored.objects.items() if kind == "Pod"]
        return World(self.now, resource, profile, Children(tuple(jobs), tuple(pods), dict(stored.progress)))

    def apply(self, key: Key, manifest: Manifest) -> None:
        """Make an object exist."""
        self._verb(
            "apply", f"{manifest['kind']}/{manifest['metadata']['name']}", lambda: self._apply(key, manifest)
        )

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object and the pods of a Job."""
        self._verb("delete", f"{reference.kind}/{reference.name}", lambda: self._delete(key, reference))

    def write_status(self, key: Key, status: Mapping[str, Any], resource_version: str) -> None:
        """Replace the status, or raise Conflict."""
        self._verb("write_status", key.name, lambda: self._write(key, status, resource_version))

    def record(self, key: Key, event: Event) -> None:
        """Remember an Event."""
        self._verb("record", event.reason, lambda: self._stored[key].events.append(event))

    # --- the kubelet and the clock ---

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def run_pods(self, key: Key, script: Script, seconds: float = 30.0) -> int:
        """Give every live run what the script says; returns how many have ended."""
        ended = 0
        for job in self.live_jobs(key):
            stage = self._stage_file(key, job)
            outcome = script(stage)
            if isinstance(outcome, Stays):
                self._stay(key, job, outcome)
                continue
            self._end(key, job, stage, outcome, seconds)
            ended += 1
        return ended

    def live_jobs(self, key: Key) -> list[dict[str, Any]]:
        """Jobs without an end."""
        objects = self._stored[key].objects.items()
        return [item for (kind, _), item in objects if kind == "Job" and not item["status"].get("conditions")]

    def lose_jobs(self, key: Key, *, but: str = "") -> None:
        """Somebody deletes every Job, except one."""
        objects = self._stored[key].objects
        for kind, name in list(objects):
            if kind in ("Job", "Pod") and not (but and name.startswith(but)):
                del objects[(kind, name)]

    def status(self, key: Key) -> dict[str, Any]:
        """As stored."""
        return _copy(self._stored[key].resource.get("status") or {})

    def events(self, key: Key) -> list[Event]:
        """All Events so far."""
        return self._stored[key].events

    def objects(self, key: Key, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [_copy(item) for (found, _), item in self._stored[key].objects.items() if found == kind]

    def stage_files(self, key: Key) -> list[StageFile]:
        """stage.json of every run whose Job is there, oldest first."""
        return [self._stage_file(key, job) for job in self.objects(key, "Job")]

    # --- inside ---

    def _verb(self, verb: str, what: str, effect: Callable[[], object]) -> None:
        number = len(self.verbs)
        if self.crash_at == number and not self.crash_after:
            self.crash_at = None
            raise OperatorKilledError(f"before {verb} {what}")
        effect()
        self.verbs.append(f"{verb} {what}")
        if self.crash_at == number and self.crash_after:
            self.crash_at = None
            raise OperatorKilledError(f"after {verb} {what}")

    def _apply(self, key: Key, manifest: Manifest) -> None:
        stored = self._stored[key]
        place = (manifest["kind"], manifest["metadata"]["name"])
        if place in stored.objects:
            return
        made = _copy(manifest)
        if place[0] == "Job":
            check_new_job(stored.resource, list(stored.objects.values()), made, self.created)
            self.created.append(key_of(made))
            made["status"] = {}
            made["metadata"]["creationTimestamp"] = _time(self.now)
        stored.objects[place] = made

    def _delete(self, key: Key, reference: ObjectReference) -> None:
        stored = self._stored[key]
        job = stored.objects.get((reference.kind, reference.name))
        if job is None:
            return
        if reference.kind == "Job":
            check_deletion(stored.resource, job)
        del stored.objects[(reference.kind, reference.name)]
        for kind, name in list(stored.objects):
            if kind == "Pod" and name.startswith(f"{reference.name}-"):
                del stored.objects[(kind, name)]

    def _write(self, key: Key, status: Mapping[str, Any], resource_version: str) -> None:
        stored = self._stored[key]
        if self.touch_before_status > 0:
            self.touch_before_status -= 1
            stored.version += 1
        if resource_version != str(stored.version):
            raise Conflict(f"resource version {resource_version} is not {stored.version}")
        before, after = stored.resource.get("status"), _copy(status)
        if before == after:
            raise ImpossibleWorldError("an unchanged status was written")
        check_history(before or {}, after)
        stored.resource["status"] = after
        stored.version += 1
        self.writes += 1

    def _stage_file(self, key: Key, job: Manifest) -> StageFile:
        text = self._stored[key].objects[("ConfigMap", job["metadata"]["name"])]["data"]["stage.json"]
        return StageFile.model_validate_json(text)

    def _pod(self, job: Mapping[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        metadata = job["metadata"]
        return {
            "kind": "Pod",
            "metadata": {
                "name": f"{metadata['name']}-0",
                "namespace": metadata["namespace"],
                "labels": dict(metadata["labels"]),
                "annotations": {"batch.kubernetes.io/job-completion-index": "0"},
            },
            "status": status,
        }

    def _stay(self, key: Key, job: dict[str, Any], outcome: Stays) -> None:
        stored, name = self._stored[key], job["metadata"]["name"]
        if outcome.pending_reason:
            reason, _, message = outcome.pending_reason.partition(": ")
            condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
            stored.objects[("Pod", f"{name}-0")] = self._pod(
                job, {"phase": "Pending", "conditions": [condition]}
            )
            return
        old = stored.objects.get(("Pod", f"{name}-0"), {}).get("status", {})
        if old.get("phase") != "Running":
            running = {"name": "trainer", "state": {"running": {"startedAt": _time(self.now)}}}
            stored.objects[("Pod", f"{name}-0")] = self._pod(
                job, {"phase": "Running", "containerStatuses": [running]}
            )
        if outcome.progress is not None:
            stored.progress[name] = outcome.progress

    def _end(self, key: Key, job: dict[str, Any], stage: StageFile, outcome: Ends, seconds: float) -> None:
        stored, name = self._stored[key], job["metadata"]["name"]
        old = stored.objects.get(("Pod", f"{name}-0"), {}).get("status", {})
        running = (old.get("containerStatuses") or [{}])[0].get("state", {}).get("running", {})
        started = running.get("startedAt") or _time(self.now)
        self.advance(seconds)
        text = encode_message(
            stage.run.key, stage.kind, exit_code=outcome.exit_code, cause=outcome.cause,
            message=outcome.message, facts=outcome.facts,
        )  # fmt: skip
        done = outcome.exit_code == 0 and not outcome.disrupted
        ended = {
            "exitCode": outcome.exit_code,
            "reason": "OOMKilled" if outcome.oom_killed else "Completed" if done else "Error",
            "message": "" if outcome.lose_message else text,
            "startedAt": started,
            "finishedAt": _time(self.now),
        }
        status: dict[str, Any] = {
            "phase": "Succeeded" if done else "Failed",
            "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}],
        }
        if outcome.disrupted:
            status["conditions"] = [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            ]
        for index in range(int(job["spec"]["completions"])):
            pod = self._pod(job, status)
            pod["metadata"]["name"] = f"{name}-{index}"
            pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
            stored.objects[("Pod", f"{name}-{index}")] = pod
        condition = {
            "type": "Complete" if done else "Failed",
            "status": "True",
            "reason": "" if done else "BackoffLimitExceeded",
            "lastTransitionTime": _time(self.now),
        }
        job["status"] = {"conditions": [condition], "startTime": started}


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _copy(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that shares nothing, as an API server gives."""
    copied: dict[str, Any] = json.loads(json.dumps(value, default=dict))
    return copied
