"""Thread-safe memory of what watches, lists and own writes say.

Three sources tell of the same object, in any order: a watch, a list, and the answer to a write of ours. For one object
(uid) the highest resource version is the truth, and an object that was seen to be gone never comes back.

Objects are kept as compact JSON: a quarter of the memory of dictionaries, and nobody can change what another reads.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

from dapt_operator.cluster.kubernetes.cache.entry import (
    HOLDERS,
    KEPT,
    PROFILE,
    RESOURCE,
    Entry,
    Place,
    Target,
    place_of,
    read,
    version_of,
)
from dapt_operator.cluster.port import Key
from dapt_operator.stage_run import Manifest

_MOST_DEAD = 50_000


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
        self._objects: dict[str, dict[Place, Entry]] = {kind: {} for kind in KEPT}
        self._places: dict[Key, dict[Place, None]] = {}
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
        place = place_of(body)
        if place[0] not in KEPT or (not own and self._is_known(place, body)):
            return None
        entry = read(body)
        with self._lock:
            if entry is None:
                return self._disown(place, body)
            return self._put(place, entry, own)

    def remove(self, body: Manifest) -> Key | None:
        """Forget a deleted object; returns the adaptation concerned.

        A pod that has ended stays for its last words as long as its Job is there.
        """
        place, last = place_of(body), read(body)
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
        run: str | None = None,
    ) -> set[Key]:
        """Take a full list; what is not in it and not younger than it goes.

        Args:
            kind: of the objects.
            bodies: all of them; may be an iterator over pages.
            resource_version: of the list; None: everything that is not in it goes.
            namespace: whose list it is; None: of all.
            run: label of the run whose list it is; None: of all.

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
        newest = None if resource_version is None else version_of(resource_version)
        with self._lock:
            over = [
                place
                for place, entry in self._objects[kind].items()
                if (namespace is None or place[1] == namespace)
                and (run is None or entry.run == run)
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
        return Family(json.loads(resource), jobs, pods)

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

    def resources(self) -> Iterator[Manifest]:
        """All DomainAdaptations, each read when its turn comes: a thousand at once take much memory."""
        with self._lock:
            bodies = [entry.body for entry in self._objects[RESOURCE].values()]
        return map(json.loads, bodies)

    def resource(self, key: Key) -> Manifest | None:
        """One DomainAdaptation."""
        with self._lock:
            entry = self._entry((RESOURCE, key.namespace, key.name))
        return None if entry is None else json.loads(entry.body)

    def identity(self, key: Key) -> tuple[str, str] | None:
        """Uid and resource version of a DomainAdaptation."""
        with self._lock:
            entry = self._entry((RESOURCE, key.namespace, key.name))
            return None if entry is None else (entry.uid, str(entry.version))

    def profile(self, name: str) -> Manifest | None:
        """One AdaptationProfile."""
        with self._lock:
            entry = self._entry((PROFILE, "", name))
        return None if entry is None else json.loads(entry.body)

    def default_profiles(self) -> tuple[str, ...]:
        """Names of those that serve resources that name none; more than one is a mistake."""
        with self._lock:
            return tuple(sorted(place[2] for place, one in self._objects[PROFILE].items() if one.is_default))

    def profile_versions(self) -> set[tuple[str, int]]:
        """Name and resource version of every AdaptationProfile."""
        with self._lock:
            return {(place[2], one.version) for place, one in self._objects[PROFILE].items()}

    def keys_of_profile(self, name: str) -> tuple[Key, ...]:
        """Adaptations that a change of this profile concerns: those that name it, and those that name none."""
        with self._lock:
            entries = list(self._objects[RESOURCE].values())
        return tuple(entry.key for entry in entries if entry.key is not None and entry.profile in ("", name))

    def _is_known(self, place: Place, body: Manifest) -> bool:
        """Whether this very version is here already: most of what a list says, and cheaper than reading it."""
        metadata = body.get("metadata") or {}
        with self._lock:
            known = self._entry(place)
            return (
                known is not None
                and not known.own
                and known.uid == metadata.get("uid")
                and known.version == version_of(metadata.get("resourceVersion"))
            )

    # --- with the lock held ---

    def _entry(self, place: Place) -> Entry | None:
        return self._objects.get(place[0], {}).get(place)

    def _disown(self, place: Place, body: Manifest) -> Key | None:
        """Let go what was ours, when somebody has taken its labels away or put another object in its place."""
        known = self._entry(place)
        if known is None or version_of((body.get("metadata") or {}).get("resourceVersion")) <= known.version:
            return None
        return self._drop(place)

    def _put(self, place: Place, entry: Entry, own: bool) -> Key | None:
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

    def _drop(self, place: Place) -> Key | None:
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

    def _has_holder(self, pod: Entry) -> bool:
        assert pod.key is not None
        siblings = self._places.get(pod.key, {})
        return any(
            place[0] in HOLDERS and self._objects[place[0]][place].run == pod.run for place in siblings
        )

    def _drop_ghosts(self, holder: Entry) -> None:
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
