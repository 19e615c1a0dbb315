"""Implements the five verbs in memory, with a scripted kubelet and checks of what a planner must never do.

Time stands still unless a test moves it. Objects are created once where Kubernetes would refuse a second creation;
statuses carry resource versions; a test can kill the operator before or after any writing verb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn, TypeVar

from dapt_contract.stage_file import StageFile
from dapt_operator.api.v1alpha1.conditions import timestamp
from dapt_operator.api.v1alpha1.profile import DEFAULT_PROFILE_ANNOTATION
from dapt_operator.cluster.errors import CannotCreateError, ConflictError, NameTakenError
from dapt_operator.cluster.port import Event, Key, ObjectReference, World
from dapt_operator.launchers.labels import QUEUE_LABEL, origin_of
from dapt_operator.launchers.render.objects import STAGE_FILE_KEY
from dapt_operator.stage_run import HOLDER_KINDS, Children, JsonObject, Manifest
from dapt_operator.testing.invariants import (
    ImpossibleWorldError,
    check_conditions,
    check_deletion,
    check_end,
    check_history,
    check_new_job,
    check_pod_deletion,
    key_of,
    of_ours,
)
from dapt_operator.testing.kubelet import MemoryKubelet
from dapt_operator.testing.objects import (
    Ends,
    OperatorKilledError,
    Script,
    Stored,
    copy,
    is_over,
    job_uid,
    max_evaluations,
    may_run,
    workload_of,
)

START: Final = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
CHECK_INTERVAL: Final = timedelta(minutes=10)
"""After this long the objects that live runs use are looked at again, as at a resync."""
LOOKED_AT: Final = ("PersistentVolumeClaim", "Service")
"""Kinds of objects that are read before they are written."""
Result = TypeVar("Result")


class MemoryCluster(MemoryKubelet):
    """Implements the port for tests; see the package for how to use it."""

    def __init__(self) -> None:
        super().__init__(START)
        self.profiles: dict[str, JsonObject] = {}
        """By name."""
        self.verbs: list[str] = []
        """Every writing verb so far, as `apply Job/name`."""
        self.crash_at: int | None = None
        """Index in `verbs` of the verb at which the operator is killed; None: at none."""
        self.crash_after = False
        """Whether it is killed after that verb took effect, and not before."""
        self.num_conflicts = 0
        """Number of the next status writes that find a newer resource version."""
        self.num_taken_names = 0
        """Number of the next Jobs that find their name taken."""
        self.created: list[str] = []
        """Keys of all runs ever created, in order."""
        self.writes = 0
        """Number of status writes."""
        self.contents: dict[str, str] = {}
        """Digests of the files that sources name, as a local run reports them."""
        self.graceful = False
        """Whether the pods of a deleted Job get their grace period, as on a cluster; else they are gone at once."""
        self._stored: dict[Key, Stored] = {}
        self._next_checks: dict[Key, datetime] = {}
        self._uids = 0

    # --- what users and other controllers do ---

    def advance(self, seconds: float) -> None:
        """Move the time forward; a deleted run whose grace period ends meanwhile is killed."""
        super().advance(seconds)
        for stored in self._stored.values():
            self.kill_overdue(stored)

    def add_profile(self, manifest: Manifest) -> None:
        """Create or replace a profile."""
        self.profiles[manifest["metadata"]["name"]] = copy(manifest)

    def add(self, manifest: Manifest) -> Key:
        """Create a DomainAdaptation with a new uid; return its key."""
        metadata = manifest["metadata"]
        key = Key(metadata.get("namespace", "default"), metadata["name"])
        self._uids += 1
        resource = copy(manifest)
        resource["metadata"] |= {"namespace": key.namespace, "uid": f"{self._uids:08d}-uid", "generation": 1}
        self._stored[key] = Stored(resource)
        return key

    def edit(self, key: Key, change: Callable[[JsonObject], None]) -> None:
        """Change the spec as `kubectl edit` does: the generation increases."""
        stored = self._stored[key]
        change(stored.resource["spec"])
        stored.resource["metadata"]["generation"] += 1
        stored.version += 1

    def touch(self, key: Key) -> None:
        """Increase the resource version, as a change of a label does."""
        self._stored[key].version += 1

    def remove(self, key: Key) -> None:
        """Delete the resource with its children."""
        del self._stored[key]

    def remove_later(self, key: Key) -> None:
        """Delete the resource while a finalizer of somebody else keeps it, and so its children."""
        self._stored[key].resource["metadata"]["deletionTimestamp"] = timestamp(self.now)
        self.touch(key)

    def restore(self, key: Key, manifest: Manifest) -> None:
        """Bring back an object that was deleted, as a backup does."""
        self._stored[key].objects[manifest["kind"], manifest["metadata"]["name"]] = copy(manifest)

    def hide(self, key: Key, kind: str, name: str) -> None:
        """Leave a Job or JobSet with its pods out of what is observed, as a watch does that is behind."""
        self._stored[key].unreported.add((kind, name))

    def report(self, key: Key) -> None:
        """Let the watch catch up."""
        self._stored[key].unreported.clear()

    def take_name(self, key: Key, kind: str, name: str, why: str) -> None:
        """Let another owner have an object of that name; `why` says whose it is."""
        self._stored[key].taken[(kind, name)] = why

    def free_name(self, key: Key, kind: str, name: str) -> None:
        """Remove the other owner's object again."""
        del self._stored[key].taken[(kind, name)]

    def refuse(self, key: Key, kind: str, why: str = "") -> None:
        """Refuse objects of a kind, as a quota or a policy does; without a reason, accept them again."""
        if why:
            self._stored[key].refused[kind] = why
        else:
            self._stored[key].refused.pop(kind, None)

    def tamper(self, key: Key, name: str) -> None:
        """Replace the ConfigMap of a run by one with another stage.json."""
        data = self._stored[key].objects[("ConfigMap", name)]["data"]
        data[STAGE_FILE_KEY] = data[STAGE_FILE_KEY].replace('"seed":', '"seed": ', 1) + " "

    def delete_object(self, key: Key, kind: str, name: str) -> None:
        """Delete one object, as a user may; the pods of a Job go with it."""
        stored = self._stored[key]
        if kind in HOLDER_KINDS:
            self.delete_gang(stored, stored.objects[(kind, name)], gracefully=False)
        else:
            del stored.objects[(kind, name)]

    # --- the five verbs ---

    def observe(self, key: Key) -> World:
        """Return the stored objects, as they are now."""
        stored = self._stored.get(key)
        if stored is None:
            return World(self.now, None, None, Children())
        resource = copy(stored.resource)
        resource["metadata"]["resourceVersion"] = str(stored.version)
        name = resource["spec"].get("profile")
        marked = tuple(
            sorted(
                profile_name
                for profile_name, profile in self.profiles.items()
                if (profile["metadata"].get("annotations") or {}).get(DEFAULT_PROFILE_ANNOTATION) == "true"
            )
        )
        chosen = name or (marked[0] if len(marked) == 1 else None)
        profile = self.profiles.get(chosen) if chosen else None
        default_profiles = () if name else marked
        children = self._children(stored)
        return World(
            self.now,
            resource,
            profile,
            children,
            default_profiles,
            dict(self.contents),
            is_check_due=self._is_check_due(key, children),
        )

    def apply(self, key: Key, manifest: Manifest) -> bool:
        """Make an object exist; return whether it was created. A shared object that exists is only looked at."""
        place = (manifest["kind"], manifest["metadata"]["name"])
        if manifest["kind"] in LOOKED_AT and place in self._stored[key].objects:
            return False
        try:
            return self._verb("apply", "/".join(place), lambda: self._apply(key, manifest))
        except (CannotCreateError, NameTakenError):
            # What could not be made is tried again at the next reconcile.
            self._next_checks.pop(key, None)
            raise

    def can_create(self, key: Key, manifest: Manifest) -> bool:
        """Return whether the name of an object is free. It counts as a verb, since the request is that of a write."""
        place = (manifest["kind"], manifest["metadata"]["name"])
        return self._verb("apply", "/".join(place), lambda: self._is_free(key, *place))

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object and the pods of a Job."""
        what = f"{reference.kind}/{reference.name}"
        self._verb("delete", what, lambda: self._delete(key, reference))

    def write_status(self, key: Key, status: Manifest, resource_version: str) -> None:
        """Replace the status, or raise ConflictError."""
        self._verb("write_status", key.name, lambda: self._write(key, status, resource_version))

    def record(self, key: Key, event: Event) -> None:
        """Store an Event."""
        self._verb("record", event.reason, lambda: self._stored[key].events.append(event))

    # --- what a test reads and moves ---

    def stored(self, key: Key) -> Stored:
        """Return what the cluster holds for an adaptation, itself and no copy: a test may change it unnoticed."""
        return self._stored[key]

    def run_pods(self, key: Key, script: Script, seconds: float = 30.0) -> int:
        """Do with every live run what the script returns for it; return the number of runs that ended."""
        return self.run_gangs(self._stored[key], script, seconds)

    def break_pod(self, key: Key, index: int, outcome: Ends) -> None:
        """End one pod of the live run by itself; its peers continue."""
        (gang,) = self.live_jobs(key)
        self.fail_pod(self._stored[key], gang, index, outcome)

    def write_log(self, key: Key, pod: str, *lines: str) -> None:
        """Set the last lines of a pod's log."""
        self._stored[key].logs[pod] = lines

    def live_jobs(self, key: Key) -> list[JsonObject]:
        """Return the Jobs and JobSets whose processes exist or may still start."""
        stored = self._stored[key]
        return [gang for gang in stored.gangs() if may_run(gang, stored.pods_of(gang["metadata"]["name"]))]

    def delete_jobs(self, key: Key, *, except_prefix: str = "") -> None:
        """Delete every Job and pod, except those whose name starts with `except_prefix`."""
        objects = self._stored[key].objects
        for kind, name in list(objects):
            is_kept = bool(except_prefix) and name.startswith(except_prefix)
            if kind in (*HOLDER_KINDS, "Pod") and not is_kept:
                del objects[(kind, name)]

    def status(self, key: Key) -> JsonObject:
        """Return the stored status; empty before the first write."""
        return copy(self._stored[key].resource.get("status") or {})

    def events(self, key: Key) -> list[Event]:
        """Return all Events so far."""
        return self._stored[key].events

    def objects(self, key: Key, kind: str) -> list[JsonObject]:
        """Return all objects of a kind."""
        return [copy(item) for (item_kind, _), item in self._stored[key].objects.items() if item_kind == kind]

    def stage_files(self, key: Key) -> list[StageFile]:
        """Return the stage.json of every run whose Job and ConfigMap exist, oldest first."""
        stored = self._stored[key]
        return [
            self.stage_file(stored, gang)
            for gang in stored.gangs()
            if ("ConfigMap", gang["metadata"]["name"]) in stored.objects
        ]

    # --- inside ---

    def _is_check_due(self, key: Key, children: Children) -> bool:
        due = self._next_checks.setdefault(key, self.now if children.jobs else self.now + CHECK_INTERVAL)
        if self.now < due:
            return False
        self._next_checks[key] = self.now + CHECK_INTERVAL
        return True

    def _children(self, stored: Stored) -> Children:
        gangs = [copy(gang) for gang in stored.reported_gangs()]
        pods = [
            copy(item)
            for (kind, name), item in stored.objects.items()
            if kind == "Pod" and not any(name.startswith(f"{gang}-") for _, gang in stored.unreported)
        ]
        workloads, digests = {}, {}
        for gang in gangs:
            name = gang["metadata"]["name"]
            message = self.queues.get(gang["metadata"]["labels"].get(QUEUE_LABEL, ""))
            if gang["spec"].get("suspend") and message is not None:
                workloads[name] = workload_of(gang, message)
            if not is_over(gang) and stored.pods_of(name):
                file = stored.objects.get(("ConfigMap", name))
                text = file["data"][STAGE_FILE_KEY].encode() if file else None
                digests[name] = None if text is None else hashlib.sha256(text).hexdigest()
        jobsets = (gang for gang in gangs if gang["kind"] == "JobSet")
        return Children(
            jobs=tuple(gangs),
            pods=tuple(pods),
            orphans=tuple(pod for pod in pods if not pod["metadata"]["ownerReferences"]),
            progress=dict(stored.progress),
            workloads=workloads,
            logs=dict(stored.logs),
            stage_digests=digests,
            child_jobs={gang["metadata"]["name"]: job_uid(gang) for gang in jobsets},
        )

    def _verb(self, verb: str, what: str, effect: Callable[[], Result]) -> Result:
        number = len(self.verbs)
        if self.crash_at == number and not self.crash_after:
            self._kill_operator(f"before {verb} {what}")
        result = effect()
        self.verbs.append(f"{verb} {what}")
        if self.crash_at == number and self.crash_after:
            self._kill_operator(f"after {verb} {what}")
        return result

    def _kill_operator(self, when: str) -> NoReturn:
        self.crash_at = None
        # The next process does not know when this one has looked.
        self._next_checks.clear()
        raise OperatorKilledError(when)

    def _is_free(self, key: Key, kind: str, name: str) -> bool:
        stored = self._stored[key]
        if kind in stored.refused:
            raise CannotCreateError(kind, name, stored.refused[kind])
        if (why := stored.taken.get((kind, name))) is not None:
            raise NameTakenError(kind, name, why)
        return (kind, name) not in stored.objects

    def _apply(self, key: Key, manifest: Manifest) -> bool:
        stored = self._stored[key]
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if not self._is_free(key, kind, name):
            existing = stored.objects[kind, name]
            if kind == "ConfigMap" and existing["data"][STAGE_FILE_KEY] != manifest["data"][STAGE_FILE_KEY]:
                raise NameTakenError(kind, name, "its stage.json has other content", is_ours=True)
            # The answer to the request reports it, however late the watch is.
            stored.unreported.discard((kind, name))
            if kind in HOLDER_KINDS and origin_of(existing) != origin_of(manifest):
                raise ConflictError(f"{kind} {name} was created from another spec or profile")
            return False
        created = copy(manifest)
        if kind in HOLDER_KINDS:
            if self.num_taken_names > 0:
                self.num_taken_names -= 1
                raise NameTakenError(kind, name, "it has no owner")
            profile, ours = stored.resource["spec"].get("profile", ""), of_ours(stored.objects, self.created)
            limit = max_evaluations(self.profiles.get(profile))
            check_new_job(stored.resource, ours, created, self.created, limit)
            self.created.append(key_of(created))
            created["status"] = {}
            created["metadata"]["uid"] = f"{kind}-{len(self.created):08d}"
            created["metadata"]["creationTimestamp"] = timestamp(self.now)
        stored.objects[kind, name] = created
        return True

    def _delete(self, key: Key, reference: ObjectReference) -> None:
        stored = self._stored[key]
        if (existing := stored.objects.get((reference.kind, reference.name))) is None:
            return
        if reference.kind in HOLDER_KINDS:
            check_deletion(stored.resource, existing, stored.pods_of(reference.name))
            self.delete_gang(stored, existing, gracefully=self.graceful)
            return
        if reference.kind == "Pod":
            peers = stored.pods_of(reference.name.rpartition("-")[0])
            check_pod_deletion(existing, peers, reference.grace_seconds)
        gang = next((gang for gang in stored.gangs() if gang["metadata"]["name"] == reference.name), None)
        if gang is not None and not gang["metadata"].get("deletionTimestamp"):
            # A run's ConfigMap goes right before its Job, and is bound by the same rules.
            check_deletion(stored.resource, gang, stored.pods_of(reference.name))
        del stored.objects[(reference.kind, reference.name)]

    def _write(self, key: Key, status: Manifest, resource_version: str) -> None:
        stored = self._stored[key]
        if self.num_conflicts > 0:
            self.num_conflicts, stored.version = self.num_conflicts - 1, stored.version + 1
        if resource_version != str(stored.version):
            raise ConflictError(f"resource version {resource_version} is not {stored.version}")
        before, after = stored.resource.get("status"), copy(status)
        if before == after:
            raise ImpossibleWorldError("an unchanged status was written")
        check_history(before or {}, after)
        check_conditions(before or {}, after, int(stored.resource["metadata"]["generation"]))
        check_end(before or {}, after, self.live_jobs(key))
        stored.resource["status"] = after
        stored.version += 1
        self.writes += 1
