"""Thread-safe memory of what watches, lists and own writes say.

Three sources tell of the same object, in any order: a watch, a list, and the answer to a write of ours. For one object
(uid) the highest resource version is the truth, and an object that was seen to be gone never comes back.

Jobs and pods are kept as compact JSON: a tenth of the memory of dictionaries, and nobody can change them.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from dapt_operator.api.names import GROUP, LABEL_NAME, LABEL_RUN, LABEL_UID
from dapt_operator.api.run import Manifest
from dapt_operator.cluster.kubernetes.slim import interned, slim
from dapt_operator.cluster.port import Key
from dapt_operator.launchers.pod import COMPLETION_INDEX

RESOURCE, PROFILE = "DomainAdaptation", "AdaptationProfile"
HOLDERS = ("Job", "JobSet")
"""Kinds that hold pods."""
KEPT = (RESOURCE, PROFILE, *HOLDERS, "Pod")
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB_LABEL = "batch.kubernetes.io/job-name"
_ENDED = ("Succeeded", "Failed")
_MOST_DEAD = 50_000

_Place = tuple[str, str, str]
"""Kind, namespace, name."""


@dataclass(frozen=True)
class Target:
    """A pod that answers for its run."""

    key: Key
    holder: str
    """Name of the Job or JobSet."""
    run: str
    """First digits of the run key."""
    host: str
    port: int


@dataclass(slots=True)
class _Entry:
    body: Any
    """Bytes of JSON for children, dictionaries for resources and profiles."""
    uid: str
    version: int
    key: Key | None
    owner_uid: str = ""
    run: str = ""
    ended: bool = False
    """For a pod: it has said its last words."""
    gone: bool = False
    """Deleted, and kept for what it said until its Job goes too."""
    own: bool = False
    """A status that we wrote and no watch has told of yet."""
    target: Target | None = None


@dataclass(frozen=True)
class Family:
    """A resource and the children that carry its uid."""

    resource: Manifest | None
    jobs: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()


class Store:
    """The newest known version of every resource, profile, Job, JobSet and pod of ours."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._objects: dict[str, dict[_Place, _Entry]] = {kind: {} for kind in KEPT}
        self._places: dict[Key, dict[_Place, None]] = {}
        """Children of a key, in the order in which they were first seen."""
        self._dead: OrderedDict[str, None] = OrderedDict()
        """Uids of objects that are gone, so that a late event does not bring one back."""

    def put(self, body: Manifest, *, own: bool = False) -> Key | None:
        """Take a version of an object; the newer resource version wins.

        Args:
            body: as the API server gave it.
            own: it is the answer to a write of ours.

        Returns:
            The adaptation concerned; None when the object is not ours, is a profile, or says nothing new. A status
            that we wrote is new once more when the watch tells of it: what follows from it is decided then.
        """
        place = _place(body)
        if place[0] not in KEPT or (not own and self._is_known(place, body)):
            return None
        entry = _read(body)
        with self._lock:
            if entry is None:
                return self._disown(place, body)
            return self._put(place, entry, own)

    def remove(self, body: Manifest) -> Key | None:
        """Forget a deleted object; returns the adaptation concerned.

        A pod that has ended stays for its last words as long as its Job is there.
        """
        place, last = _place(body), _read(body)
        uid = str((body.get("metadata") or {}).get("uid", ""))
        with self._lock:
            known = self._entry(place)
            if last is not None or known is not None:
                self._bury(uid)
            if known is None or known.uid != uid:
                return None
            if last is not None and last.ended and not known.ended:
                known.body, known.ended, known.target = last.body, True, None
            return self._drop(place)

    def replace(
        self,
        kind: str,
        bodies: Iterable[Manifest],
        resource_version: str | None = None,
        namespace: str | None = None,
    ) -> set[Key]:
        """Take a full list; what is not in it and not younger than it goes.

        Args:
            kind: of the objects.
            bodies: all of them; may be an iterator over pages.
            resource_version: of the list; None: everything that is not in it goes.
            namespace: whose list it is; None: of all.

        Returns:
            Adaptations whose objects changed.
        """
        changed: set[Key] = set()
        seen = set()
        for body in bodies:
            seen.add(str((body.get("metadata") or {}).get("uid", "")))
            key = self.put({"kind": kind, **body})
            if key is not None:
                changed.add(key)
        newest = None if resource_version is None else _version(resource_version)
        with self._lock:
            over = [
                place
                for place, entry in self._objects[kind].items()
                if (namespace is None or place[1] == namespace)
                and entry.uid not in seen
                and not entry.gone
                and (newest is None or entry.version <= newest)
            ]
            for place in over:
                self._bury(self._objects[kind][place].uid)
                key = self._drop(place)
                if key is not None:
                    changed.add(key)
        return changed

    # --- reading ---

    def family(self, key: Key) -> Family:
        """A resource with its children; children of a predecessor with the same name are not shown."""
        with self._lock:
            own = self._entry((RESOURCE, key.namespace, key.name))
            if own is None:
                return Family(None)
            places = self._places.get(key, {})
            found = [(place[0], self._objects[place[0]][place]) for place in places]
            bodies = [(kind, entry.body) for kind, entry in found if entry.owner_uid == own.uid]
            resource = own.body
        jobs = tuple(json.loads(body) for kind, body in bodies if kind in HOLDERS)
        pods = tuple(json.loads(body) for kind, body in bodies if kind == "Pod")
        return Family(resource, jobs, pods)

    def uid(self, kind: str, namespace: str, name: str) -> tuple[str, str] | None:
        """Uid of an object and uid of the resource it belongs to; None when it is not known."""
        with self._lock:
            entry = self._entry((kind, namespace, name))
            return (entry.uid, entry.owner_uid) if entry is not None and not entry.gone else None

    def targets(self) -> tuple[Target, ...]:
        """The pods that can be asked for a live reading."""
        with self._lock:
            return tuple(pod.target for pod in self._objects["Pod"].values() if pod.target is not None)

    def keys(self) -> tuple[Key, ...]:
        """Of all DomainAdaptations."""
        with self._lock:
            return tuple(Key(place[1], place[2]) for place in self._objects[RESOURCE])

    def resources(self) -> tuple[Manifest, ...]:
        """All DomainAdaptations. Read only."""
        return tuple(self._bodies(RESOURCE))

    def resource(self, key: Key) -> Manifest | None:
        """One DomainAdaptation. Read only."""
        with self._lock:
            entry = self._entry((RESOURCE, key.namespace, key.name))
            return None if entry is None else entry.body

    def profiles(self) -> tuple[Manifest, ...]:
        """All AdaptationProfiles. Read only."""
        return tuple(self._bodies(PROFILE))

    def keys_of_profile(self, name: str) -> tuple[Key, ...]:
        """Adaptations that a change of this profile concerns: those that name it, and those that name none."""
        return tuple(
            Key(item["metadata"]["namespace"], item["metadata"]["name"])
            for item in self._bodies(RESOURCE)
            if (item.get("spec") or {}).get("profile") in (None, "", name)
        )

    def _bodies(self, kind: str) -> Iterator[Manifest]:
        with self._lock:
            return iter([entry.body for entry in self._objects[kind].values()])

    def _is_known(self, place: _Place, body: Manifest) -> bool:
        """Whether this very version is here already: most of what a list says, and cheaper than reading it."""
        metadata = body.get("metadata") or {}
        with self._lock:
            known = self._entry(place)
            return (
                known is not None
                and not known.own
                and known.uid == metadata.get("uid")
                and known.version == _version(metadata.get("resourceVersion"))
            )

    # --- with the lock held ---

    def _entry(self, place: _Place) -> _Entry | None:
        return self._objects.get(place[0], {}).get(place)

    def _disown(self, place: _Place, body: Manifest) -> Key | None:
        """Let go what was ours, when somebody has taken its labels away or put another object in its place."""
        known = self._entry(place)
        if known is None or _version((body.get("metadata") or {}).get("resourceVersion")) <= known.version:
            return None
        return self._drop(place)

    def _put(self, place: _Place, entry: _Entry, own: bool) -> Key | None:
        if entry.uid in self._dead:
            return None
        known = self._entry(place)
        if known is not None:
            if entry.version < known.version:
                return None
            if entry.version == known.version:
                echo = known.own and not own
                known.own = known.own and own
                return known.key if echo else None
            if known.uid != entry.uid:
                self._bury(known.uid)
                self._drop(place)
        entry.own = own and place[0] == RESOURCE
        same = known is not None and known.uid == entry.uid and known.body == entry.body
        if same and known is not None:
            known.version = entry.version
            return None
        self._objects[place[0]][place] = entry
        if place[0] == RESOURCE:
            return entry.key
        if entry.key is None:
            return None  # a profile
        if known is not None and known.key is not None and known.key != entry.key:
            self._places.get(known.key, {}).pop(place, None)
        self._places.setdefault(entry.key, {})[place] = None
        return entry.key

    def _drop(self, place: _Place) -> Key | None:
        known = self._entry(place)
        if known is None:
            return None
        if place[0] == "Pod" and known.ended and self._has_holder(known):
            known.gone = True
            return known.key
        del self._objects[place[0]][place]
        if known.key is not None and place[0] != RESOURCE:
            siblings = self._places.get(known.key, {})
            siblings.pop(place, None)
            if place[0] in HOLDERS:
                self._drop_ghosts(known)
            if not siblings:
                self._places.pop(known.key, None)
        return known.key

    def _has_holder(self, pod: _Entry) -> bool:
        assert pod.key is not None
        siblings = self._places.get(pod.key, {})
        return any(
            place[0] in HOLDERS and self._objects[place[0]][place].run == pod.run for place in siblings
        )

    def _drop_ghosts(self, holder: _Entry) -> None:
        assert holder.key is not None
        siblings = self._places.get(holder.key, {})
        pods = self._objects["Pod"]
        ghosts = [place for place in siblings if place in pods and pods[place].gone]
        for place in ghosts:
            if pods[place].run == holder.run:
                del pods[place]
                del siblings[place]

    def _bury(self, uid: str) -> None:
        self._dead[uid] = None
        if len(self._dead) > _MOST_DEAD:
            self._dead.popitem(last=False)


def _place(body: Manifest) -> _Place:
    metadata = body.get("metadata") or {}
    return (str(body.get("kind")), str(metadata.get("namespace") or ""), str(metadata.get("name")))


def _read(body: Manifest) -> _Entry | None:
    """What is kept of an object; None when it is not one of ours."""
    kind, metadata = body.get("kind"), body.get("metadata") or {}
    uid, version = str(metadata.get("uid", "")), _version(metadata.get("resourceVersion"))
    namespace = str(metadata.get("namespace") or "")
    if kind == RESOURCE:
        return _Entry(interned(slim(body)), uid, version, Key(namespace, str(metadata["name"])))
    if kind == PROFILE:
        return _Entry(interned(slim(body)), uid, version, None)
    labels: Mapping[str, str] = metadata.get("labels") or {}
    name, owner = labels.get(LABEL_NAME), labels.get(LABEL_UID)
    if not name or not owner or not _is_ours(str(kind), metadata, owner):
        return None
    status = body.get("status") or {}
    return _Entry(
        body=json.dumps(slim(body), separators=(",", ":"), ensure_ascii=False).encode(),
        uid=uid,
        version=version,
        key=Key(namespace, name),
        owner_uid=owner,
        run=labels.get(LABEL_RUN, ""),
        ended=kind == "Pod" and status.get("phase") in _ENDED,
        target=_target(body, Key(namespace, name)) if kind == "Pod" else None,
    )


def _is_ours(kind: str, metadata: Mapping[str, Any], owner_uid: str) -> bool:
    """Jobs and JobSets are the resource's own; a Job that a JobSet made is not, its pods are. Labels prove nothing:
    controllers copy them."""
    owners = metadata.get("ownerReferences") or []
    owner: Mapping[str, Any] = next((item for item in owners if item.get("controller")), {})
    if kind == "Pod":
        return owner.get("kind") == "Job"
    return (
        owner.get("kind") == RESOURCE
        and str(owner.get("apiVersion", "")).startswith(f"{GROUP}/")
        and owner.get("uid") == owner_uid
    )


def _target(pod: Manifest, key: Key) -> Target | None:
    """Where a running first pod can be asked."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels, annotations = metadata["labels"], metadata.get("annotations") or {}
    index = annotations.get(COMPLETION_INDEX, labels.get(COMPLETION_INDEX))
    holder = labels.get(JOBSET_LABEL) or labels.get(JOB_LABEL)
    port = next(
        (
            port.get("containerPort")
            for container in (pod.get("spec") or {}).get("containers") or []
            for port in container.get("ports") or []
            if port.get("name") == "progress"
        ),
        None,
    )
    run, host = labels.get(LABEL_RUN), status.get("podIP")
    if status.get("phase") != "Running" or index != "0" or not (run and host and holder and port):
        return None
    return Target(key, str(holder), str(run), str(host), int(port))


def _version(value: Any) -> int:
    return int(value) if str(value or "").isdigit() else 0
