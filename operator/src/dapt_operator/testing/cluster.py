"""A cluster in memory for tests: the five verbs, a scripted kubelet, and a checker that refuses impossible worlds.

Time stands still unless a test moves it. Objects are created once where Kubernetes would refuse a second creation;
statuses carry resource versions; a crash can be planted before or after any verb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from dapt_contract.stage_file import StageFile
from dapt_operator.api.v1alpha1.profile import ProfileEvaluation
from dapt_operator.cluster.errors import CannotCreateError, ConflictError, NameTakenError
from dapt_operator.cluster.port import Event, Key, ObjectReference, World
from dapt_operator.stage_run import Children, Manifest
from dapt_operator.testing import objects as testing_objects
from dapt_operator.testing.invariants import (
    ImpossibleWorldError,
    check_conditions,
    check_deletion,
    check_history,
    check_new_job,
    check_pod_deletion,
    key_of,
)
from dapt_operator.testing.kubelet import MemoryKubelet
from dapt_operator.testing.objects import GANGS, Stored, copy, time_text
from dapt_operator.testing.objects import Ends as Ends
from dapt_operator.testing.objects import Script as Script
from dapt_operator.testing.objects import Stays as Stays

START = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
DEFAULT_PROFILE_ANNOTATION = "dapt.dev/default"


class OperatorKilledError(Exception):
    """The operator was killed here."""


class MemoryCluster(MemoryKubelet):
    """The port of tests."""

    def __init__(self) -> None:
        super().__init__(START)
        self.profiles: dict[str, dict[str, Any]] = {}
        self.verbs: list[str] = []
        self.crash_at: int | None = None
        """Number of the writing verb at which the operator is killed."""
        self.crash_after = False
        """Whether it dies after the verb took effect."""
        self.touch_before_status = 0
        """So many status writes find that somebody wrote in between."""
        self.refuse_gangs = 0
        """So many Jobs find their name taken."""
        self.created: list[str] = []
        """Keys of all runs ever created, in order."""
        self.writes = 0
        self.graceful = False
        """Whether the pods of a deleted Job have time to save, as on a cluster; else they are gone at once."""
        self._stored: dict[Key, Stored] = {}
        self._uids = 0

    # --- what a person does ---

    def add_profile(self, manifest: Manifest) -> None:
        """Create or replace a profile."""
        self.profiles[manifest["metadata"]["name"]] = copy(manifest)

    def add(self, manifest: Manifest) -> Key:
        """Create a DomainAdaptation; it gets a uid of its own."""
        metadata = manifest["metadata"]
        key = Key(metadata.get("namespace", "default"), metadata["name"])
        self._uids += 1
        resource = copy(manifest)
        resource["metadata"] |= {"namespace": key.namespace, "uid": f"{self._uids:08d}-uid", "generation": 1}
        self._stored[key] = Stored(resource)
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

    def take_name(self, key: Key, kind: str, name: str, why: str) -> None:
        """Somebody else has an object of that name, in the way of the adaptation's own."""
        self._stored[key].taken[(kind, name)] = why

    def free_name(self, key: Key, kind: str, name: str) -> None:
        """It is moved away."""
        del self._stored[key].taken[(kind, name)]

    def refuse(self, key: Key, kind: str, why: str = "") -> None:
        """A quota or a policy forbids objects of a kind; without a reason it no longer does."""
        if why:
            self._stored[key].refused[kind] = why
        else:
            self._stored[key].refused.pop(kind, None)

    def tamper(self, key: Key, name: str) -> None:
        """A tenant replaces the ConfigMap of a run by one with another stage.json."""
        data = self._stored[key].objects[("ConfigMap", name)]["data"]
        data["stage.json"] = data["stage.json"].replace('"seed":', '"seed": ', 1) + " "

    def lose_object(self, key: Key, kind: str, name: str) -> None:
        """Somebody deletes one object."""
        del self._stored[key].objects[(kind, name)]

    # --- the five verbs ---

    def observe(self, key: Key) -> World:
        """Everything, as it is now."""
        stored = self._stored.get(key)
        if stored is None:
            return World(self.now, None, None, Children())
        resource = copy(stored.resource)
        resource["metadata"]["resourceVersion"] = str(stored.version)
        name = resource["spec"].get("profile")
        marked = tuple(
            sorted(
                found
                for found, profile in self.profiles.items()
                if (profile["metadata"].get("annotations") or {}).get(DEFAULT_PROFILE_ANNOTATION) == "true"
            )
        )
        wanted = name or (marked[0] if len(marked) == 1 else None)
        profile = self.profiles.get(wanted) if wanted else None
        return World(self.now, resource, profile, self._children(stored), () if name else marked)

    def apply(self, key: Key, manifest: Manifest) -> None:
        """Make an object exist."""
        what = f"{manifest['kind']}/{manifest['metadata']['name']}"
        self._verb("apply", what, lambda: self._apply(key, manifest))

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object and the pods of a Job."""
        what = f"{reference.kind}/{reference.name}"
        self._verb("delete", what, lambda: self._delete(key, reference))

    def write_status(self, key: Key, status: Mapping[str, Any], resource_version: str) -> None:
        """Replace the status, or raise Conflict."""
        self._verb("write_status", key.name, lambda: self._write(key, status, resource_version))

    def record(self, key: Key, event: Event) -> None:
        """Remember an Event."""
        self._verb("record", event.reason, lambda: self._stored[key].events.append(event))

    # --- what a test sees and does ---

    def run_pods(self, key: Key, script: Script, seconds: float = 30.0) -> int:
        """Give every live run what the script says; returns how many have ended or gone."""
        return self.run_gangs(self._stored[key], script, seconds)

    def break_pod(self, key: Key, index: int, outcome: Ends) -> None:
        """One pod of the run that lives ends by itself; its peers go on."""
        (gang,) = self.live_jobs(key)
        self.fail_pod(self._stored[key], gang, index, outcome)

    def say(self, key: Key, pod: str, *lines: str) -> None:
        """The last lines of a pod's log."""
        self._stored[key].logs[pod] = lines

    def live_jobs(self, key: Key) -> list[dict[str, Any]]:
        """Jobs and JobSets whose processes are there, or may come."""
        stored = self._stored[key]
        return [
            gang
            for gang in stored.gangs()
            if testing_objects.may_run(gang, stored.pods_of(gang["metadata"]["name"]))
        ]

    def lose_jobs(self, key: Key, *, but: str = "") -> None:
        """Somebody deletes every Job, except one."""
        objects = self._stored[key].objects
        for kind, name in list(objects):
            if kind in (*GANGS, "Pod") and not (but and name.startswith(but)):
                del objects[(kind, name)]

    def status(self, key: Key) -> dict[str, Any]:
        """As stored."""
        return copy(self._stored[key].resource.get("status") or {})

    def events(self, key: Key) -> list[Event]:
        """All Events so far."""
        return self._stored[key].events

    def objects(self, key: Key, kind: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [copy(item) for (found, _), item in self._stored[key].objects.items() if found == kind]

    def stage_files(self, key: Key) -> list[StageFile]:
        """stage.json of every run whose Job and ConfigMap are there, oldest first."""
        stored = self._stored[key]
        here = [gang for gang in stored.gangs() if ("ConfigMap", gang["metadata"]["name"]) in stored.objects]
        return [self.stage_file(stored, gang) for gang in here]

    # --- inside ---

    def _children(self, stored: Stored) -> Children:
        gangs = [copy(gang) for gang in stored.gangs()]
        pods = [copy(item) for (kind, _), item in stored.objects.items() if kind == "Pod"]
        workloads, digests = {}, {}
        for gang in gangs:
            name = gang["metadata"]["name"]
            said = self.queues.get(gang["metadata"]["labels"].get(testing_objects.QUEUE_LABEL, ""))
            if gang["spec"].get("suspend") and said is not None:
                workloads[name] = testing_objects.workload_of(gang, said)
            if not testing_objects.is_over(gang) and stored.pods_of(name):
                file = stored.objects.get(("ConfigMap", name))
                text = file["data"]["stage.json"] if file else None
                digests[name] = hashlib.sha256(text.encode()).hexdigest() if text is not None else None
        return Children(
            jobs=tuple(gangs), pods=tuple(pods), progress=dict(stored.progress), workloads=workloads,
            logs=dict(stored.logs), stage_digests=digests,
        )  # fmt: skip

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
        if place[0] in stored.refused:
            raise CannotCreateError(*place, stored.refused[place[0]])
        if place in stored.taken:
            raise NameTakenError(*place, stored.taken[place])
        if place in stored.objects:
            old = stored.objects[place]
            if place[0] == "ConfigMap" and old["data"]["stage.json"] != manifest["data"]["stage.json"]:
                raise NameTakenError(*place, "its stage.json holds something else", is_ours=True)
            return
        made = copy(manifest)
        if place[0] in GANGS:
            if self.refuse_gangs > 0:
                self.refuse_gangs -= 1
                raise NameTakenError(*place, "it has no owner")
            check_new_job(
                stored.resource, list(stored.objects.values()), made, self.created, self._evaluations(stored)
            )
            self.created.append(key_of(made))
            made["status"] = {}
            made["metadata"]["creationTimestamp"] = time_text(self.now)
        stored.objects[place] = made

    def _evaluations(self, stored: Stored) -> int:
        """So many may run at once, by the profile."""
        offered = self.profiles.get(stored.resource["spec"].get("profile", "")) or {"spec": {}}
        most = (offered["spec"].get("evaluation") or {}).get("concurrency")
        return ProfileEvaluation().concurrency if most is None else int(most)

    def _delete(self, key: Key, reference: ObjectReference) -> None:
        stored = self._stored[key]
        found = stored.objects.get((reference.kind, reference.name))
        if found is None:
            return
        if reference.kind in GANGS:
            check_deletion(stored.resource, found, stored.pods_of(reference.name))
            self.delete_gang(stored, found, gracefully=self.graceful)
            return
        if reference.kind == "Pod":
            check_pod_deletion(
                found, stored.pods_of(reference.name.rpartition("-")[0]), reference.grace_seconds
            )
        del stored.objects[(reference.kind, reference.name)]

    def _write(self, key: Key, status: Mapping[str, Any], resource_version: str) -> None:
        stored = self._stored[key]
        if self.touch_before_status > 0:
            self.touch_before_status -= 1
            stored.version += 1
        if resource_version != str(stored.version):
            raise ConflictError(f"resource version {resource_version} is not {stored.version}")
        before, after = stored.resource.get("status"), copy(status)
        if before == after:
            raise ImpossibleWorldError("an unchanged status was written")
        check_history(before or {}, after)
        check_conditions(before or {}, after, int(stored.resource["metadata"]["generation"]))
        stored.resource["status"] = after
        stored.version += 1
        self.writes += 1
