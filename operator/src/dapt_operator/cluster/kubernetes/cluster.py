"""The five verbs on Kubernetes.

`observe` reads the store alone, so it costs no request (but for rare looks at a run's ConfigMap, at why a queue makes
it wait, and at a failed pod's log). What a write answers goes into the store at once, so that the next `observe` sees
it however late the watch is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import kubernetes.client

from dapt_operator.api.names import API_VERSION, LABEL_NAME, LABEL_RUN, LABEL_UID
from dapt_operator.cluster.kubernetes.cache.entry import HOLDERS, PROFILE, RESOURCE
from dapt_operator.cluster.kubernetes.cache.store import Family, Store
from dapt_operator.cluster.kubernetes.client import Api
from dapt_operator.cluster.kubernetes.create import create, why_refused
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.events import event_manifest
from dapt_operator.cluster.kubernetes.polls import targets
from dapt_operator.cluster.kubernetes.polls.kueue_workloads import Workloads
from dapt_operator.cluster.kubernetes.polls.pod_logs import PodLogs
from dapt_operator.cluster.kubernetes.polls.pod_refusals import PodRefusals
from dapt_operator.cluster.kubernetes.polls.progress import ProgressPolls
from dapt_operator.cluster.kubernetes.polls.stage_file_digests import StageDigests
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.port import CannotCreateError, ConflictError, Event, Key, ObjectReference, World
from dapt_operator.stage_run import Children, Manifest

_MOST_REMEMBERED = 20_000
_EVENT_ATTEMPTS = 2
_log = logging.getLogger(__name__)


class KubernetesCluster:
    """The port; synchronous, to be used from any number of threads."""

    def __init__(
        self,
        api: kubernetes.client.ApiClient,
        store: Store,
        *,
        on_change: Callable[[Key], None],
        may_write: Callable[[], bool] = lambda: True,
        namespaces: Sequence[str] = (),
    ) -> None:
        """
        Args:
            api: configured client; its configuration is used, the connections are of a pool of our own.
            store: filled by watches too.
            on_change: called from other threads when something changed that no watch tells (a live reading, logs).
            may_write: asked right before each write; when it says no, the verb raises NotLeader.
            namespaces: empty for all.
        """
        self._api = Api(api, may_write)
        self._store = store
        self._namespaces = tuple(namespaces)
        self._read_anew: set[str] = set()
        """Uids of runs whose pods were listed because their watch was behind."""
        self._digests = StageDigests(self._api)
        self._workloads = Workloads(self._api)
        self._refusals = PodRefusals(self._api)
        self._logs = PodLogs(self._api, on_change)
        self._readings = ProgressPolls(store.targets, on_change)

    def close(self) -> None:
        """Stop the threads; verbs must not be called any more."""
        self._readings.close()
        self._logs.close()
        self._api.close()

    # --- observe ---

    def observe(self, key: Key) -> World:
        """Gather everything that a plan may depend on.

        Raises:
            ApiError: pods of a run that is over had to be read anew, and could not be.
        """
        family = self._store.family(key)
        now = datetime.now(UTC)
        if family.resource is None:
            self._digests.forget(key)
            self._workloads.forget(key)
            self._refusals.forget(key)
            return World(now, None, None, Children())
        family = self._up_to_date(key, family, now)
        if family.resource is None:
            return World(now, None, None, Children())
        profile, defaults = self._profile(family.resource)
        return World(now, family.resource, profile, self._children(key, family), defaults)

    def _profile(self, resource: Manifest) -> tuple[Manifest | None, tuple[str, ...]]:
        name = (resource.get("spec") or {}).get("profile")
        if name:
            return self._store.profile(str(name)), ()
        defaults = self._store.default_profiles()
        return (self._store.profile(defaults[0]) if len(defaults) == 1 else None), defaults

    def _children(self, key: Key, family: Family) -> Children:
        jobs, pods = family.jobs, family.pods
        failed = targets.failed(pods)
        return Children(
            jobs=jobs,
            pods=pods,
            progress=self._readings.of(key),
            workloads=_known(self._workloads.of(key, targets.queued(jobs))),
            refusals=self._refusals.of(key, targets.podless(jobs, pods)),
            logs=self._logs.of(key, failed, targets.worth_reading(jobs, failed)) if failed else {},
            stage_digests=self._digests.of(key, targets.live(jobs, pods)),
        )

    def _up_to_date(self, key: Key, family: Family, now: datetime) -> Family:
        """The same, with the pods of runs that are over read anew where their watch is behind; once for each run."""
        runs = [
            job
            for job in targets.untold(family.jobs, family.pods, now)
            if str(job["metadata"]["uid"]) not in self._read_anew
        ]
        if not runs:
            return family
        for job in runs:
            run, uid = targets.run_of(job), job["metadata"]["labels"][LABEL_UID]
            query = {"labelSelector": f"{LABEL_UID}={uid},{LABEL_RUN}={run}"}
            self._list_once("Pod", key.namespace, query, run)
            if len(self._read_anew) > _MOST_REMEMBERED:
                self._read_anew.clear()
            self._read_anew.add(str(job["metadata"]["uid"]))
        return self._store.family(key)

    # --- writes ---

    def apply(self, key: Key, manifest: Manifest) -> None:  # noqa: ARG002
        """Make an object exist; see `Cluster.apply`.

        Raises:
            NameTaken: the name belongs to another owner, or an immutable ConfigMap holds something else.
            CannotMake: the API server refused, or does not know the kind.
            NotLeader: this process may not write.
            ApiError: the API server could not be reached, or is in trouble; see `errors`.
        """
        try:
            made = create(self._api, manifest)
        except ApiError as error:
            why = why_refused(error, str(manifest["kind"]))
            if why:
                raise CannotCreateError(manifest["kind"], manifest["metadata"]["name"], why) from error
            raise
        if made is not None and manifest["kind"] in HOLDERS:
            self._store.put(made, own=True)

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object of this adaptation; one of somebody else is left alone. See `Cluster.delete`.

        Raises:
            NotLeader, ApiError: as `apply`.
        """
        owner = self._store.identity(key)
        if owner is None:
            return  # its children go with it
        path = KINDS[reference.kind].path(key.namespace, reference.name)
        uid = self._uid(path, key, reference, owner[0])
        if uid is None:
            return
        options: dict[str, Any] = {"preconditions": {"uid": uid}}
        if reference.kind in HOLDERS:
            options["propagationPolicy"] = "Foreground"
        if reference.grace_seconds is not None:
            options["gracePeriodSeconds"] = reference.grace_seconds
        self._api.delete(path, options)

    def _uid(self, path: str, key: Key, reference: ObjectReference, owner_uid: str) -> str | None:
        """Uid of an object that is this adaptation's; None when there is none."""
        known = self._store.uid(reference.kind, key.namespace, reference.name)
        if known is not None:
            return known[0] if known[1] == owner_uid else None
        if reference.kind == "Pod":
            return None  # all pods of ours are known
        found = self._api.get(path)
        metadata = (found or {}).get("metadata") or {}
        owners = {str(owner.get("uid")) for owner in metadata.get("ownerReferences") or []}
        return str(metadata["uid"]) if owner_uid in owners else None

    def write_status(self, key: Key, status: Mapping[str, Any], resource_version: str) -> None:
        """Replace the status.

        Raises:
            Conflict: `resource_version` is not the stored one, or the resource is gone.
            NotLeader, ApiError: as `apply`.
        """
        path = KINDS[RESOURCE].path(key.namespace, key.name)
        body = {
            "apiVersion": API_VERSION,
            "kind": RESOURCE,
            "metadata": {
                "name": key.name, "namespace": key.namespace, "resourceVersion": resource_version,
            },
            "status": status,
        }  # fmt: skip
        try:
            written = self._api.put(f"{path}/status", body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            written = self._api.get(path)
            if written is None:
                self._forget(key)
                raise ConflictError(f"{key.namespace}/{key.name} is gone") from None
            if written.get("status") != status:
                self._store.put(written)
                raise ConflictError(f"{key.namespace}/{key.name}: {error.message}") from None
            # Our first attempt was written, and its answer lost on the way.
        self._store.put(written, own=True)

    def _forget(self, key: Key) -> None:
        known = self._store.identity(key)
        if known is not None:
            metadata = {"namespace": key.namespace, "name": key.name, "uid": known[0]}
            self._store.remove({"kind": RESOURCE, "metadata": metadata})

    def record(self, key: Key, event: Event) -> None:
        """Post an Event; failing to is logged.

        Raises:
            NotLeader: this process may not write.
        """
        manifest = event_manifest(key, self._store.identity(key), event)
        try:
            self._api.post(KINDS["Event"].collection(key.namespace), manifest, attempts=_EVENT_ATTEMPTS)
        except ApiError as error:
            if error.status != 409:
                _log.warning(
                    "Event %s of %s/%s is not posted: %s", event.reason, key.namespace, key.name, error
                )

    # --- resync ---

    def resync(self) -> set[Key]:
        """List everything anew; returns the adaptations whose objects changed unnoticed.

        Raises:
            ApiError: a list could not be read; what was read before it counts.
        """
        changed: set[Key] = set()
        for kind in (RESOURCE, PROFILE, "JobSet", "Job", "Pod"):
            query = {} if kind in (RESOURCE, PROFILE) else {"labelSelector": LABEL_NAME}
            places = self._namespaces if KINDS[kind].namespaced and self._namespaces else (None,)
            for namespace in places:
                changed |= self._list(kind, namespace, query)
        return changed

    def _list(self, kind: str, namespace: str | None, query: Mapping[str, str]) -> set[Key]:
        profiles_before = self._store.profile_versions()
        try:
            changed = self._list_once(kind, namespace, query)
        except ApiError as error:
            if error.status in (403, 404) and kind == "JobSet":
                return set()  # JobSet is not installed, or not for us: rights are asked before what there is
            if error.status != 410:
                raise
            changed = self._list_once(kind, namespace, query)  # its moment was forgotten between two pages
        if kind == PROFILE:
            for name in {name for name, _ in profiles_before ^ self._store.profile_versions()}:
                changed |= set(self._store.keys_of_profile(name))
        return changed

    def _list_once(
        self, kind: str, namespace: str | None, query: Mapping[str, str], run: str | None = None
    ) -> set[Key]:
        pages = self._api.pages(KINDS[kind].collection(namespace), query)
        first = next(pages)
        version = str((first.get("metadata") or {}).get("resourceVersion") or "") or None
        return self._store.replace(kind, _items(kind, first, pages), version, namespace, run)


def _items(kind: str, first: Manifest, rest: Iterator[Manifest]) -> Iterator[Manifest]:
    """The objects of all pages; items of a list do not say of what kind they are."""
    page: Manifest | None = first
    while page is not None:
        for item in page.get("items") or []:
            yield {"kind": kind, "apiVersion": KINDS[kind].api_version, **item}
        page = next(rest, None)


def _known(workloads: Mapping[str, Manifest | None]) -> dict[str, Manifest]:
    """Those that there are."""
    return {name: workload for name, workload in workloads.items() if workload is not None}
