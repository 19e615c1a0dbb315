"""Keeps the newest version of every object that watches, lists and own writes report; thread-safe.

Three sources report the same object, in any order: a watch, a list, and the answer to a write of ours. For one object
(uid) the highest resource version is the truth, and an object that was reported as deleted never comes back.

Objects are kept as compact JSON, long ones compressed: it takes a quarter or less of the memory of dictionaries, and a
reader cannot change what another one reads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, ItemsView, Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Final

from dapt_operator.cluster.kubernetes.cache.entry import (
    CACHED_KINDS,
    PROFILE,
    RESOURCE,
    Comparison,
    Entry,
    ObjectId,
    Summary,
    Target,
    content_of,
    entry_of,
    id_of,
    version_of,
)
from dapt_operator.cluster.port import Key
from dapt_operator.stage_run import HOLDER_KINDS, Manifest

_MAX_DELETED_UIDS: Final = 50_000


@dataclass(frozen=True)
class ResourceWithChildren:
    """A resource and the children that carry its uid."""

    resource: Manifest | None
    jobs: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()


class Store:
    """Holds every resource and profile, and every Job, JobSet and pod of ours."""

    def __init__(self, summarize: Callable[[Manifest], Summary] | None = None) -> None:
        """
        Args:
            summarize: called once for each version of a resource, in the thread that reports it; never raises.
        """
        self._summarize = summarize
        # One lock for all maps: an object, its place among its siblings and its deletion change together.
        self._lock = Lock()
        self._objects: dict[str, dict[ObjectId, Entry]] = {kind: {} for kind in CACHED_KINDS}
        self._child_ids: dict[Key, dict[ObjectId, None]] = {}
        """Children of an adaptation, in the order in which they were first reported."""
        self._deleted_uids: OrderedDict[str, None] = OrderedDict()
        """Uids of deleted objects, so that a late event does not bring one back."""

    def put(self, body: Manifest, *, is_own_write: bool = False) -> Key | None:
        """Store a version of an object; the newer resource version wins.

        Args:
            body: as the API server sent it.
            is_own_write: whether it is the answer to a write of this process.

        Returns:
            The adaptation to reconcile; None when the object is not ours, is a profile, or has not changed. A status
            that this process wrote counts as changed once more when the watch reports it: what follows from it is
            decided then.
        """
        object_id = id_of(body)
        if object_id[0] not in CACHED_KINDS:
            return None
        is_known, key = (False, None) if is_own_write else self._recognize(object_id, body)
        if is_known:
            return key
        # Before the lock is taken: writing an object as JSON takes long, and every reconcile waits for this lock.
        entry = entry_of(body)
        if entry is not None and self._summarize is not None and object_id[0] == RESOURCE:
            entry.summary = self._summarize(body)
        with self._lock:
            if entry is None:
                return self._drop_if_newer(object_id, body)
            return self._put(object_id, entry, is_own_write)

    def remove(self, body: Manifest) -> Key | None:
        """Remove a deleted object; return the adaptation to reconcile.

        A pod that has ended is retained for its termination message as long as its Job exists.
        """
        object_id, last, uid = id_of(body), entry_of(body), _uid_of(body)
        with self._lock:
            entry = self._entry(object_id)
            if last is not None or entry is not None:
                self._mark_deleted(uid)
            # The name may belong to a new object already, which the late report of the old one must not remove.
            if entry is None or entry.uid != uid:
                return None
            # The deletion may be the first report of the pod's end.
            if last is not None and last.has_ended and not entry.has_ended:
                entry.body, entry.has_ended, entry.target = last.body, True, None
            return self._drop(object_id)

    def replace(
        self,
        kind: str,
        bodies: Iterable[Manifest],
        resource_version: str | None = None,
        namespace: str | None = None,
        run: str | None = None,
    ) -> set[Key]:
        """Store a full list; remove the objects that are neither in it nor newer than it.

        Args:
            kind: of the objects.
            bodies: all objects; may be an iterator over pages.
            resource_version: of the list; None: remove every object that is not in it.
            namespace: namespace that was listed; None: all.
            run: label of the run that was listed; None: all.

        Returns:
            Adaptations whose objects changed.
        """
        changed: set[Key] = set()
        listed_uids = set()
        for body in bodies:
            # Each item is stored as it comes, so that one page and not the whole list is in memory.
            listed_uids.add(_uid_of(body))
            key = self.put({"kind": kind, **body})
            if key is not None:
                changed.add(key)
        return changed | self._drop_missing(kind, listed_uids, resource_version, namespace, run)

    def compare(
        self, kind: str, items: Iterable[Manifest], resource_version: str, namespace: str | None = None
    ) -> Comparison:
        """Compare a full list of metadata with what is stored; remove the objects that are neither in it nor newer.

        Args:
            kind: of the objects.
            items: every object with nothing but its metadata.
            resource_version: of the list.
            namespace: namespace that was listed; None: all.
        """
        changed: set[Key] = set()
        listed_uids, outdated = set(), []
        for item in items:
            body = {**item, "kind": kind}
            listed_uids.add(_uid_of(body))
            is_outdated, key = self.compare_item(body)
            if key is not None:
                changed.add(key)
            if is_outdated:
                outdated.append(id_of(body))
        changed |= self._drop_missing(kind, listed_uids, resource_version, namespace)
        return Comparison(frozenset(changed), tuple(outdated))

    def compare_item(self, body: Manifest) -> tuple[bool, Key | None]:
        """Return whether a listed object is to be read, and the adaptation that nobody has reported a change of."""
        object_id, version = id_of(body), version_of(body["metadata"].get("resourceVersion"))
        with self._lock:
            entry = self._entry(object_id)
            if _uid_of(body) in self._deleted_uids:
                return False, None  # the list is older than the deletion
            if entry is not None and entry.uid == _uid_of(body) and version <= entry.version:
                # The watch has not reported what this process wrote: the adaptation is reconciled once more.
                is_echo = entry.is_own_write and version == entry.version
                entry.is_own_write = entry.is_own_write and not is_echo
                return False, entry.key if is_echo else None
        # Somebody else's objects may carry our labels, and are not read again at each list.
        return entry is not None or entry_of(body) is not None, None

    def _drop_missing(
        self,
        kind: str,
        listed_uids: Container[str],
        resource_version: str | None,
        namespace: str | None,
        run: str | None = None,
    ) -> set[Key]:
        """Remove the objects that are neither in a list nor newer than it; return the adaptations that had them."""
        changed: set[Key] = set()
        newest = None if resource_version is None else version_of(resource_version)
        with self._lock:
            missing = [
                object_id
                for object_id, entry in self._objects[kind].items()
                if (namespace is None or object_id[1] == namespace)
                and (run is None or entry.run == run)
                and entry.uid not in listed_uids
                # The API server has lost it already, and its message is still to be read.
                and not entry.is_retained
                # An object that is newer than the list was created, or written, after the list was made.
                and (newest is None or entry.version <= newest)
            ]
            for object_id in missing:
                self._mark_deleted(self._objects[kind][object_id].uid)
                key = self._drop(object_id)
                if key is not None:
                    changed.add(key)
        return changed

    # --- reading ---

    def with_children(self, key: Key) -> ResourceWithChildren:
        """Return a resource with its children, without those of a deleted resource of the same name."""
        with self._lock:
            owner = self._entry((RESOURCE, key.namespace, key.name))
            if owner is None:
                return ResourceWithChildren(None)
            children = [(child[0], self._objects[child[0]][child]) for child in self._child_ids.get(key, {})]
            bodies = [(kind, entry.body) for kind, entry in children if entry.owner_uid == owner.uid]
            resource = owner.body
        # Parsed after the lock is released: a gang's pods take long, and the watches wait for this lock.
        jobs = tuple(content_of(body) for kind, body in bodies if kind in HOLDER_KINDS)
        pods = tuple(content_of(body) for kind, body in bodies if kind == "Pod")
        return ResourceWithChildren(content_of(resource), jobs, pods)

    def uid(self, kind: str, namespace: str, name: str) -> tuple[str, str] | None:
        """Return the uid of an object and of the resource that it belongs to; None when it is not stored."""
        with self._lock:
            entry = self._entry((kind, namespace, name))
            return (entry.uid, entry.owner_uid) if entry is not None and not entry.is_retained else None

    def targets(self) -> tuple[Target, ...]:
        """Return the pods that serve live readings."""
        with self._lock:
            return tuple(pod.target for pod in self._objects["Pod"].values() if pod.target is not None)

    def keys(self) -> tuple[Key, ...]:
        """Return the keys of all DomainAdaptations."""
        with self._lock:
            return tuple(Key(namespace, name) for _, namespace, name in self._objects[RESOURCE])

    def summaries(self) -> list[Summary]:
        """Return the summary of each DomainAdaptation."""
        with self._lock:
            entries = list(self._objects[RESOURCE].values())
        return [entry.summary for entry in entries if entry.summary is not None]

    def owner(self, key: Key) -> str:
        """Return the installation that a DomainAdaptation belongs to, as its summary has it."""
        with self._lock:
            entry = self._entry((RESOURCE, key.namespace, key.name))
            return entry.summary.owner if entry is not None and entry.summary is not None else ""

    def resource(self, key: Key) -> Manifest | None:
        """Return a DomainAdaptation; None when there is none of that key."""
        with self._lock:
            entry = self._entry((RESOURCE, key.namespace, key.name))
        return None if entry is None else content_of(entry.body)

    def identity(self, key: Key) -> tuple[str, str] | None:
        """Uid and resource version of a DomainAdaptation."""
        with self._lock:
            entry = self._entry((RESOURCE, key.namespace, key.name))
            return None if entry is None else (entry.uid, str(entry.version))

    def profile(self, name: str) -> Manifest | None:
        """Return an AdaptationProfile; None when there is none of that name."""
        with self._lock:
            entry = self._entry((PROFILE, "", name))
        return None if entry is None else content_of(entry.body)

    def default_profiles(self) -> tuple[str, ...]:
        """Return the names of the profiles that serve resources that name none; more than one is a mistake."""
        with self._lock:
            return tuple(sorted(name for (_, _, name), entry in self._profiles() if entry.is_default))

    def profile_versions(self) -> set[tuple[str, int]]:
        """Return name and resource version of every AdaptationProfile."""
        with self._lock:
            return {(name, entry.version) for (_, _, name), entry in self._profiles()}

    def keys_of_profile(self, name: str) -> tuple[Key, ...]:
        """Return the adaptations that this profile affects: those that name it, and those that name none."""
        with self._lock:
            entries = list(self._objects[RESOURCE].values())
        return tuple(entry.key for entry in entries if entry.key is not None and entry.profile in ("", name))

    def _recognize(self, object_id: ObjectId, body: Manifest) -> tuple[bool, Key | None]:
        """Return whether this very version is stored, which is cheaper than reading it, and whom it wakes.

        True for most items of a list, and for the watch's report of what this process wrote: then the adaptation is
        reconciled once more.
        """
        metadata = body.get("metadata") or {}
        with self._lock:
            entry = self._entry(object_id)
            version = version_of(metadata.get("resourceVersion"))
            if entry is None or (entry.uid, entry.version) != (metadata.get("uid"), version):
                return False, None
            is_echo, entry.is_own_write = entry.is_own_write, False
            return True, entry.key if is_echo else None

    # --- with the lock held ---

    def _entry(self, object_id: ObjectId) -> Entry | None:
        return self._objects.get(object_id[0], {}).get(object_id)

    def _profiles(self) -> ItemsView[ObjectId, Entry]:
        return self._objects[PROFILE].items()

    def _drop_if_newer(self, object_id: ObjectId, body: Manifest) -> Key | None:
        """Drop an object that was ours, when its labels were removed or another object has taken its place."""
        entry = self._entry(object_id)
        version = version_of((body.get("metadata") or {}).get("resourceVersion"))
        if entry is None or version <= entry.version:
            return None
        return self._drop(object_id)

    def _put(self, object_id: ObjectId, new: Entry, is_own_write: bool) -> Key | None:
        kind = object_id[0]
        if new.uid in self._deleted_uids:
            return None
        old = self._entry(object_id)
        if old is not None:
            # Watches, lists and answers to writes come in any order: what is older than the stored version says
            # nothing new.
            if new.version < old.version:
                return None
            if new.version == old.version:
                # The watch reports what this process wrote: the adaptation is reconciled once more.
                is_echo = old.is_own_write and not is_own_write
                old.is_own_write = old.is_own_write and is_own_write
                return old.key if is_echo else None
            # Deleted and created again under its name; the deletion itself is still to be reported, or was missed.
            if old.uid != new.uid:
                self._mark_deleted(old.uid)
                self._drop(object_id)
        new.is_own_write = is_own_write and kind == RESOURCE
        # Only parts that are not kept have changed, so nothing depends on it; the version moves on for the comparisons
        # above.
        if old is not None and old.uid == new.uid and old.body == new.body:
            old.version = new.version
            return None
        self._objects[kind][object_id] = new
        if kind == RESOURCE:
            return new.key
        if new.key is None:
            return None  # a profile
        if old is not None and old.key is not None and old.key != new.key:
            # Somebody has changed its labels: it must not count for two adaptations.
            self._child_ids.get(old.key, {}).pop(object_id, None)
        self._child_ids.setdefault(new.key, {})[object_id] = None
        return new.key

    def _drop(self, object_id: ObjectId) -> Key | None:
        kind, entry = object_id[0], self._entry(object_id)
        if entry is None:
            return None
        # The API server no longer has the pod, nor its termination message: both stay here until the Job is gone too.
        if (
            kind == "Pod"
            and entry.has_ended
            and entry.key is not None
            and self._has_holder(entry.key, entry.run)
        ):
            entry.is_retained = True
            return entry.key
        del self._objects[kind][object_id]
        if entry.key is not None and kind != RESOURCE:
            siblings = self._child_ids.get(entry.key, {})
            siblings.pop(object_id, None)
            # No watch reports the end of pods that only this store still has.
            if kind in HOLDER_KINDS:
                self._drop_retained_pods(entry.key, entry.run)
            if not siblings:
                self._child_ids.pop(entry.key, None)
        return entry.key

    def _has_holder(self, key: Key, run: str) -> bool:
        """Whether the Job or JobSet of a run is stored."""
        siblings = self._child_ids.get(key, {})
        return any(
            sibling[0] in HOLDER_KINDS and self._objects[sibling[0]][sibling].run == run
            for sibling in siblings
        )

    def _drop_retained_pods(self, key: Key, run: str) -> None:
        siblings, pods = self._child_ids.get(key, {}), self._objects["Pod"]
        for pod_id in [sibling for sibling in siblings if sibling in pods]:
            if pods[pod_id].is_retained and pods[pod_id].run == run:
                del pods[pod_id]
                del siblings[pod_id]

    def _mark_deleted(self, uid: str) -> None:
        self._deleted_uids[uid] = None
        if len(self._deleted_uids) > _MAX_DELETED_UIDS:
            # The oldest first: a late report is about a recent deletion.
            self._deleted_uids.popitem(last=False)


def _uid_of(body: Manifest) -> str:
    return str((body.get("metadata") or {}).get("uid", ""))
