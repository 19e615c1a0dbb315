"""Implements the five verbs on Kubernetes.

`observe` reads only the store, so it sends no request, except for the rate-limited polls of what no watch reports (a
run's ConfigMap, a queue's reason to wait, a failed pod's log). The answer to a write goes into the store at once, so
the next `observe` sees it however late the watch is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from dapt_operator.api.names import API_VERSION, LABEL_RUN, LABEL_UID
from dapt_operator.cluster.errors import CannotCreateError, ConflictError, NameTakenError
from dapt_operator.cluster.kubernetes.cache.entry import CACHED_KINDS, RESOURCE
from dapt_operator.cluster.kubernetes.cache.store import Store
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.connection import Connection
from dapt_operator.cluster.kubernetes.create import can_create, create, why_refused
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.events import event_manifest
from dapt_operator.cluster.kubernetes.own_children import ChildrenFilter, OwnChildren
from dapt_operator.cluster.kubernetes.polls import targets
from dapt_operator.cluster.kubernetes.polls.kueue_workloads import Workloads
from dapt_operator.cluster.kubernetes.polls.pod_events import PodEvents
from dapt_operator.cluster.kubernetes.polls.pod_logs import PodLogs
from dapt_operator.cluster.kubernetes.polls.pod_refusals import PodRefusals
from dapt_operator.cluster.kubernetes.polls.progress import ProgressPolls
from dapt_operator.cluster.kubernetes.polls.stage_file_digests import StageDigests
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.kubernetes.resync import Resync, all_items
from dapt_operator.cluster.port import Event, Key, ObjectReference, World
from dapt_operator.launchers.labels import origin_of
from dapt_operator.stage_run import HOLDER_KINDS, Children, JsonObject, Manifest

CHECK_SECONDS: Final = 600.0
"""Objects that live runs use are looked at again after this long: a pod that starts later needs them."""
_MAX_LISTED_RUNS: Final = 20_000
_EVENT_ATTEMPTS: Final = 2
_log = logging.getLogger(__name__)


class KubernetesCluster:
    """Implements the port synchronously; usable from any number of threads."""

    def __init__(
        self,
        connection: Connection,
        store: Store,
        *,
        on_change: Callable[[Key], None],
        on_reading: Callable[[Key], None] | None = None,
        may_write: Callable[[], bool] = lambda: True,
        namespaces: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        """
        Args:
            connection: where the API server is; the connections come from a pool of this class.
            store: the cache, which watches fill too.
            on_change: called from other threads when something changed that no watch reports.
            on_reading: called like `on_change` when a live reading changed, which is less urgent; None: `on_change` is.
            may_write: called right before each write; the verb raises NotLeaderError if it returns False.
            namespaces: namespaces to list; empty for all.
            clock: of the polls' intervals; monotonic, in seconds.
            check_seconds: interval at which the objects that live runs use are looked at again.
        """
        self._api = ApiServerClient(connection, may_write)
        self._store = store
        self._on_change = on_change
        self.lists = Resync(self._api, store, tuple(namespaces), clock)
        """Lists everything at the start, and again from time to time."""
        self._listed_runs: set[str] = set()
        """Uids of runs whose pods were listed because their watch was behind."""
        self._clock, self._check_seconds = clock, check_seconds
        self._next_checks: dict[Key, float] = {}
        self._digests = StageDigests(self._api, clock)
        self._workloads = Workloads(self._api, clock)
        self._refusals = PodRefusals(self._api, clock)
        self._logs = PodLogs(self._api, on_change)
        self._pod_events = PodEvents(self._api, clock)
        self._filter = ChildrenFilter(self._api, store, clock)
        self._progress = ProgressPolls(self._filter.own_targets, on_reading or on_change)

    def close(self) -> None:
        """Stop the threads; no verb may be called afterwards."""
        self._progress.close()
        self._logs.close()
        self._api.close()

    # --- observe ---

    def observe(self, key: Key) -> World:
        """Return everything that a plan may depend on.

        Raises:
            ApiError: pods of a run that is over had to be listed, or a run that is missing in the cache looked for, and
                the API server did not answer.
        """
        cached = self._store.with_children(key)
        now = datetime.now(UTC)
        if cached.resource is None:
            # Its runs end with it, and answers about them would stay for the life of the process.
            self._digests.forget(key)
            self._workloads.forget(key)
            self._refusals.forget(key)
            self._pod_events.forget(key)
            self._next_checks.pop(key, None)
            return World(now, None, None, Children())
        profile, defaults = self._profile(cached.resource)
        launcher = str(((profile or {}).get("spec") or {}).get("launcher", ""))
        own = self._filter.own_children(cached, launcher)
        if own is not None and self._list_missing_pods(key, own, now):
            own = self._filter.own_children(self._store.with_children(key), launcher)
        # The lists took a moment, in which the resource may have been deleted.
        if own is None:
            return World(now, None, None, Children())
        children, is_check_due = self._children(key, own), self._is_check_due(key, own.jobs)
        return World(now, own.resource, profile, children, defaults, is_check_due=is_check_due)

    def _is_check_due(self, key: Key, jobs: Sequence[Manifest]) -> bool:
        """Return whether the objects of live runs are to be looked at now; the next time is an interval later."""
        now = self._clock()
        # A resource that has runs when it is first seen here was left by another process: objects may have been deleted
        # since that one looked.
        due = self._next_checks.setdefault(key, now if jobs else now + self._check_seconds)
        if now < due:
            return False
        self._next_checks[key] = now + self._check_seconds
        return True

    def _profile(self, resource: Manifest) -> tuple[Manifest | None, tuple[str, ...]]:
        name = (resource.get("spec") or {}).get("profile")
        if name:
            # A profile that does not exist is reported as such: a default must not stand in for a name that is
            # misspelled.
            return self._store.profile(str(name)), ()
        defaults = self._store.default_profiles()
        return (self._store.profile(defaults[0]) if len(defaults) == 1 else None), defaults

    def _children(self, key: Key, own: OwnChildren) -> Children:
        jobs, pods = own.jobs, own.pods
        failed_pods = targets.failed_pods(pods)
        logs = self._logs.lines(key, failed_pods, targets.log_targets(jobs, failed_pods))
        workloads = self._workloads.answers(key, targets.queued_runs(jobs))
        return Children(
            jobs=jobs,
            pods=pods,
            orphans=own.orphans,
            progress=self._progress.readings(key),
            workloads={name: workload for name, workload in workloads.items() if workload is not None},
            refusals=self._refusals.answers(key, targets.runs_lacking_pods(jobs, pods)),
            pod_events=self._pod_events.answers(key, targets.unexplained_pods(jobs, pods)),
            child_jobs=own.child_jobs,
            logs=logs,
            stage_digests=self._digests.answers(key, targets.live_runs(jobs, pods)),
        )

    def _list_missing_pods(self, key: Key, own: OwnChildren, now: datetime) -> bool:
        """List the pods of finished runs where their watch is behind, once for each run; return whether any were."""
        runs = [
            job
            for job in targets.runs_ahead_of_pods(own.jobs, own.pods, now)
            if str(job["metadata"]["uid"]) not in self._listed_runs
        ]
        for job in runs:
            run, uid = targets.run_of(job), own.resource["metadata"]["uid"]
            query = {"labelSelector": f"{LABEL_UID}={uid},{LABEL_RUN}={run}"}
            pages = self._api.pages(KINDS["Pod"].collection(key.namespace), query)
            first = next(pages)
            version = str((first.get("metadata") or {}).get("resourceVersion") or "") or None
            self._store.replace("Pod", all_items("Pod", first, pages), version, key.namespace, run)
            if len(self._listed_runs) > _MAX_LISTED_RUNS:
                # A bound on memory. What is forgotten here costs one more list of one run's pods.
                self._listed_runs.clear()
            # After the list: one that could not be read is read again at the next reconcile.
            self._listed_runs.add(str(job["metadata"]["uid"]))
        return bool(runs)

    # --- writes ---

    def apply(self, key: Key, manifest: Manifest) -> bool:
        """Make an object exist; see `Cluster.apply`.

        Raises:
            NameTakenError: the name belongs to another owner, or an immutable ConfigMap has other content.
            ConflictError: a Job or JobSet of the name was created from another spec or profile, and was not known yet.
            CannotCreateError: the API server refused the object, or does not know the kind.
            NotLeaderError: this process may not write.
            ApiError: the API server could not be reached, or failed; see `errors`.
        """
        kind, name = str(manifest["kind"]), str(manifest["metadata"]["name"])
        try:
            created = create(self._api, manifest)
        except (ApiError, NameTakenError) as error:
            # What could not be looked at, or made again, is tried again by the next reconcile.
            self._next_checks.pop(key, None)
            why = why_refused(error, kind) if isinstance(error, ApiError) else ""
            if why:
                raise CannotCreateError(kind, name, why) from error
            raise
        # At once, or the next reconcile would see no run where this one has created it and the watch is late.
        if created.manifest is not None and kind in HOLDER_KINDS:
            self._store.put(created.manifest, is_own_write=True)
            if not created.is_new and origin_of(created.manifest) != origin_of(manifest):
                raise ConflictError(f"{kind} {name} exists already, created from another spec or profile")
        return created.is_new

    def can_create(self, key: Key, manifest: Manifest) -> bool:
        """Return whether the name of an object is free; see `Cluster.can_create`.

        Raises:
            CannotCreateError, NotLeaderError, ApiError: as `apply`.
        """
        try:
            return can_create(self._api, manifest)
        except ApiError as error:
            self._next_checks.pop(key, None)
            kind = str(manifest["kind"])
            if why := why_refused(error, kind):
                raise CannotCreateError(kind, str(manifest["metadata"]["name"]), why) from error
            raise

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object of this adaptation; an object of another owner is left alone. See `Cluster.delete`.

        Raises:
            NotLeaderError, ApiError: as `apply`.
        """
        owner = self._store.identity(key)
        if owner is None:
            return  # the API server deletes its children with it
        path = KINDS[reference.kind].path(key.namespace, reference.name)
        uid = self._uid(path, key, reference, owner[0])
        if uid is None:
            return
        # The uid keeps a repeated request from deleting a new object of the same name.
        options: JsonObject = {"preconditions": {"uid": uid}}
        if reference.kind in HOLDER_KINDS:
            # In the foreground the Job remains until its pods are gone: their termination messages can be read.
            options["propagationPolicy"] = "Foreground"
        if reference.grace_seconds is not None:
            options["gracePeriodSeconds"] = reference.grace_seconds
        try:
            answer = self._api.delete(path, options)
        except ApiError as error:
            # 409: another object has the name by now, or was just written. Neither says that ours is gone, so that is
            # left to the watch.
            if error.status != 409:
                raise
            return
        if reference.kind in CACHED_KINDS:
            self._store_deletion(key, reference, uid, answer)

    def _store_deletion(
        self, key: Key, reference: ObjectReference, uid: str, answer: Manifest | None
    ) -> None:
        """Put what the API server answered into the store, however late the watch is."""
        if answer is not None and answer.get("kind") != "Status":
            # It is being deleted, and goes when its pods or its grace period have ended.
            self._store.put({**answer, "kind": reference.kind}, is_own_write=True)
            return
        # It is gone. A watch that has lost the deletion would report it never, so the store would hold it for long.
        metadata = {"namespace": key.namespace, "name": reference.name, "uid": uid}
        changed = self._store.remove({"kind": reference.kind, "metadata": metadata})
        if changed is not None:
            self._on_change(changed)

    def _uid(self, path: str, key: Key, reference: ObjectReference, owner_uid: str) -> str | None:
        """Return the uid of an object that belongs to this adaptation; None when there is no such object."""
        cached = self._store.uid(reference.kind, key.namespace, reference.name)
        if cached is not None:
            # A child of a deleted resource of the same name is the garbage collector's.
            return cached[0] if cached[1] == owner_uid else None
        if reference.kind == "Pod":
            return None  # the store has all pods of ours
        metadata = (self._api.get(path) or {}).get("metadata") or {}
        owners = {str(owner.get("uid")) for owner in metadata.get("ownerReferences") or []}
        return str(metadata["uid"]) if owner_uid in owners else None

    def write_status(self, key: Key, status: Manifest, resource_version: str) -> None:
        """Replace the status.

        Raises:
            ConflictError: `resource_version` is not the stored one, or the resource is gone.
            NotLeaderError, ApiError: as `apply`.
        """
        path = KINDS[RESOURCE].path(key.namespace, key.name)
        metadata = {"name": key.name, "namespace": key.namespace, "resourceVersion": resource_version}
        body = {"apiVersion": API_VERSION, "kind": RESOURCE, "metadata": metadata, "status": status}
        try:
            written = self._api.put(f"{path}/status", body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            # From the API server, since a conflict means that the store is behind.
            stored = self._api.get(path)
            if stored is None:
                self._forget(key)
                raise ConflictError(f"{key.namespace}/{key.name} is gone") from None
            if stored.get("status") != status:
                self._store.put(stored)
                raise ConflictError(f"{key.namespace}/{key.name}: {error.message}") from None
            # The first attempt was written and its answer lost: the repeated one then met its own resource version.
            written = stored
        self._store.put(written, is_own_write=True)

    def change_conditions(self, key: Key, changed: Callable[[Manifest], Sequence[Manifest] | None]) -> bool:
        """Replace the conditions, and leave the rest of the status as the API server has it.

        Args:
            key: of the adaptation.
            changed: gets the stored resource; returns all its conditions, or None for no change.

        Returns:
            Whether they were written.

        Raises:
            NotLeaderError, ApiError: as `apply`; status 409 when somebody wrote in between.
        """
        path = KINDS[RESOURCE].path(key.namespace, key.name)
        stored = self._api.get(path)
        conditions = changed(stored) if stored is not None else None
        if stored is None or conditions is None:
            return False
        # Not a patch, which would need a right that nothing else does. The resource version keeps it from undoing what
        # somebody wrote since it was read.
        body = {**stored, "status": {**(stored.get("status") or {}), "conditions": list(conditions)}}
        self._store.put(self._api.put(f"{path}/status", body), is_own_write=True)
        return True

    def _forget(self, key: Key) -> None:
        identity = self._store.identity(key)
        if identity is not None:
            metadata = {"namespace": key.namespace, "name": key.name, "uid": identity[0]}
            self._store.remove({"kind": RESOURCE, "metadata": metadata})

    def record(self, key: Key, event: Event) -> None:
        """Post an Event; a failure is only logged, because no decision depends on an Event.

        Raises:
            NotLeaderError: this process may not write.
        """
        manifest = event_manifest(key, self._store.identity(key), event)
        try:
            self._api.post(KINDS["Event"].collection(key.namespace), manifest, attempts=_EVENT_ATTEMPTS)
        except ApiError as error:
            # 409: the name is this Event's own, so an earlier attempt was posted and its answer was lost.
            if error.status != 409:
                _log.warning(
                    "Event %s of %s/%s is not posted: %s", event.reason, key.namespace, key.name, error
                )

    # --- resync ---

    def resync(self) -> set[Key]:
        """List everything now; return the adaptations whose objects changed without a report from a watch.

        Lists that cannot be read are in `lists.failures()`.
        """
        self.lists.request_all()
        return self.lists.list_due(math.inf).changed
