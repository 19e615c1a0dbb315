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

from dapt_operator.api.names import API_VERSION, LABEL_FENCE, LABEL_NAME, LABEL_RUN
from dapt_operator.api.profile import DEFAULT_PROFILE_ANNOTATION
from dapt_operator.api.run import Children, Manifest
from dapt_operator.cluster.kubernetes.api import Api
from dapt_operator.cluster.kubernetes.creation import create, why_refused
from dapt_operator.cluster.kubernetes.digests import StageDigests
from dapt_operator.cluster.kubernetes.errors import ApiError
from dapt_operator.cluster.kubernetes.events import event_manifest
from dapt_operator.cluster.kubernetes.logs import PodLogs
from dapt_operator.cluster.kubernetes.paths import KINDS
from dapt_operator.cluster.kubernetes.readings import Readings
from dapt_operator.cluster.kubernetes.store import HOLDERS, PROFILE, RESOURCE, Family, Store
from dapt_operator.cluster.kubernetes.workloads import QUEUE_LABEL, Workloads
from dapt_operator.cluster.port import CannotMake, Conflict, Event, Key, ObjectReference, World

MOST_LOGS = 4
"""Pods of a failed gang whose logs are read: those that failed first."""
_STOPPED = (0, 143)
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
        self._digests = StageDigests(self._api)
        self._workloads = Workloads(self._api)
        self._logs = PodLogs(self._api, on_change)
        self._readings = Readings(store.targets, on_change)

    def close(self) -> None:
        """Stop the threads; verbs must not be called any more."""
        self._readings.close()
        self._logs.close()
        self._api.close()

    # --- observe ---

    def observe(self, key: Key) -> World:
        """Gather everything that a plan may depend on."""
        family = self._store.family(key)
        now = datetime.now(UTC)
        if family.resource is None:
            self._digests.forget(key)
            self._workloads.forget(key)
            return World(now, None, None, Children())
        profile, defaults = self._profile(family.resource)
        return World(now, family.resource, profile, self._children(key, family), defaults)

    def _profile(self, resource: Manifest) -> tuple[Manifest | None, tuple[str, ...]]:
        name = (resource.get("spec") or {}).get("profile")
        profiles = {str(item["metadata"]["name"]): item for item in self._store.profiles()}
        if name:
            return profiles.get(str(name)), ()
        defaults = tuple(sorted(name for name, item in profiles.items() if _is_default(item)))
        return (profiles[defaults[0]] if len(defaults) == 1 else None), defaults

    def _children(self, key: Key, family: Family) -> Children:
        open_runs = [job for job in family.jobs if not _is_over(job)]
        busy = {_run(pod) for pod in family.pods if not _phase_is(pod, "Succeeded", "Failed")}
        live = [job for job in open_runs if _run(job) in busy]
        queued = [job for job in open_runs if job["spec"].get("suspend") and QUEUE_LABEL in _labels(job)]
        failed = [pod for pod in family.pods if _phase_is(pod, "Failed")]
        return Children(
            jobs=family.jobs,
            pods=family.pods,
            progress=self._readings.of(key),
            workloads=self._workloads.of(key, queued),
            logs=self._logs.of(key, failed, _worth_reading(family.jobs, failed)) if failed else {},
            stage_digests=self._digests.of(key, live),
        )

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
                raise CannotMake(manifest["kind"], manifest["metadata"]["name"], why) from error
            raise
        if made is not None and manifest["kind"] in HOLDERS:
            self._store.put(made, own=True)

    def delete(self, key: Key, reference: ObjectReference) -> None:
        """Remove an object of this adaptation; one of somebody else is left alone. See `Cluster.delete`.

        Raises:
            NotLeader, ApiError: as `apply`.
        """
        resource = self._store.resource(key)
        if resource is None:
            return  # its children go with it
        path = KINDS[reference.kind].path(key.namespace, reference.name)
        uid = self._uid(path, key, reference, str(resource["metadata"]["uid"]))
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
                raise Conflict(f"{key.namespace}/{key.name} is gone") from None
            if written.get("status") != status:
                self._store.put(written)
                raise Conflict(f"{key.namespace}/{key.name}: {error.message}") from None
            # Our first attempt was written, and its answer lost on the way.
        self._store.put(written, own=True)

    def _forget(self, key: Key) -> None:
        known = self._store.resource(key)
        if known is not None:
            self._store.remove(known)

    def record(self, key: Key, event: Event) -> None:
        """Post an Event; failing to is logged.

        Raises:
            NotLeader: this process may not write.
        """
        manifest = event_manifest(key, self._store.resource(key), event)
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
        profiles_before = self._profile_versions()
        try:
            changed = self._list_once(kind, namespace, query)
        except ApiError as error:
            if error.status in (403, 404) and kind == "JobSet":
                return set()  # JobSet is not installed, or not for us: rights are asked before what there is
            if error.status != 410:
                raise
            changed = self._list_once(kind, namespace, query)  # its moment was forgotten between two pages
        if kind == PROFILE:
            for name in {name for name, _ in profiles_before ^ self._profile_versions()}:
                changed |= set(self._store.keys_of_profile(name))
        return changed

    def _list_once(self, kind: str, namespace: str | None, query: Mapping[str, str]) -> set[Key]:
        pages = self._api.pages(KINDS[kind].collection(namespace), query)
        first = next(pages)
        version = str((first.get("metadata") or {}).get("resourceVersion") or "") or None
        return self._store.replace(kind, _items(kind, first, pages), version, namespace)

    def _profile_versions(self) -> set[tuple[str, str]]:
        return {
            (str(item["metadata"]["name"]), str(item["metadata"].get("resourceVersion")))
            for item in self._store.profiles()
        }


def _items(kind: str, first: Manifest, rest: Iterator[Manifest]) -> Iterator[Manifest]:
    """The objects of all pages; items of a list do not say of what kind they are."""
    page: Manifest | None = first
    while page is not None:
        for item in page.get("items") or []:
            yield {"kind": kind, "apiVersion": KINDS[kind].api_version, **item}
        page = next(rest, None)


def _is_default(profile: Manifest) -> bool:
    annotations = profile["metadata"].get("annotations") or {}
    return bool(annotations.get(DEFAULT_PROFILE_ANNOTATION) == "true")


def _labels(item: Manifest) -> Mapping[str, str]:
    labels: Mapping[str, str] = item["metadata"].get("labels") or {}
    return labels


def _run(item: Manifest) -> str:
    return _labels(item).get(LABEL_RUN, "")


def _phase_is(pod: Manifest, *phases: str) -> bool:
    return (pod.get("status") or {}).get("phase") in phases


def _is_over(job: Manifest) -> bool:
    if job["metadata"].get("deletionTimestamp"):
        return True
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(
        item.get("status") == "True" and item.get("type") in ("Complete", "Completed", "Failed")
        for item in conditions
    )


def _worth_reading(jobs: Sequence[Manifest], failed: Sequence[Manifest]) -> set[str]:
    """Failed pods of the newest run: the causes of older ones are written down. First those that failed first."""
    if not jobs:
        return set()
    newest = _run(max(jobs, key=_fence))
    ends = {
        str(pod["metadata"]["name"]): end
        for pod in failed
        if _run(pod) == newest and (end := _end(pod)) and end.get("exitCode") not in _STOPPED
    }
    first = sorted(ends, key=lambda name: str(ends[name].get("finishedAt") or "9"))
    return set(first[:MOST_LOGS])


def _fence(job: Manifest) -> int:
    fence = _labels(job).get(LABEL_FENCE, "")
    return int(fence) if fence.isdigit() else 0


def _end(pod: Manifest) -> Mapping[str, Any]:
    """How its containers ended; empty for a pod that never ran."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((end for item in statuses if (end := (item.get("state") or {}).get("terminated"))), {})
