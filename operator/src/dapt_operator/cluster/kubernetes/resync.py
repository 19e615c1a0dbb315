"""Lists all objects at the start and again from time to time, each kind and namespace on its own.

Watches lose events now and then: a deletion between two lists of a watch, for example, is reported by none. So each
list is repeated. The first one reads whole objects, page by page. The others read only metadata, mostly from the
server's memory, and of the objects only those that the store has not in this version, so that a quiet resync of a
thousand adaptations costs a few requests and no long parsing.

A list that fails is repeated on its own, and harms no other: a namespace that is gone or forbidden must not stop the
adaptations of the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from dapt_operator.api.names import LABEL_NAME
from dapt_operator.cluster.kubernetes.cache.entry import PROFILE, RESOURCE
from dapt_operator.cluster.kubernetes.cache.store import Store
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.errors import ApiError, RequestRefusedError
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.cluster.port import Key
from dapt_operator.stage_run import Manifest

LISTED_KINDS: Final = (RESOURCE, PROFILE, "JobSet", "Job", "Pod")
RETRY_SECONDS: Final = 2.0
"""Pause after a list that failed because the server did; twice as long after each further time."""
REFUSED_SECONDS: Final = 30.0
"""Pause after a list that was refused, and the longest one after the others."""
ABSENT_SECONDS: Final = 60.0
"""Pause until it is tried again whether JobSets can be listed."""
_ATTEMPTS: Final = 2
_METADATA_PAGE_ITEMS: Final = 500
RESOURCE_PAGE_ITEMS: Final = 10
"""Resources of one page: with a long history each takes half a MB once it is parsed, and the peak is not given back."""
_AFTER_CONNECTING: Final = ("ReadTimeoutError", "ProtocolError", "HTTPError")
"""Reasons of requests that were sent and not answered."""
MAX_SINGLE_READS = 25
"""Objects that are read one by one; of more, the whole list is read."""

Query = dict[str, str | int]


@dataclass(frozen=True)
class FailedList:
    """A list that cannot be read at the moment."""

    kind: str
    namespace: str
    """Empty: the whole cluster."""
    error: str
    is_unreachable: bool
    """Whether no connection to the API server was made, which says nothing about this list."""


@dataclass
class _List:
    """What is known about one list."""

    kind: str
    namespace: str | None
    """None: all namespaces, or a kind that has none."""
    due: float = float("-inf")
    is_listed: bool = False
    """Whether it was read once."""
    is_absent: bool = False
    """Whether the kind is not installed, or may not be read, and is not needed."""
    is_fresh: bool = True
    """Whether the next read must show all that was written before, instead of coming from the server's memory."""
    outdated: set[tuple[str, str]] = field(default_factory=set)
    """Namespace and name of the objects that are to be read before the list is due."""
    error: str = ""
    is_unreachable: bool = False
    num_failures: int = 0
    read_at: float | None = None
    """Unix time of the beginning of the last list that was read."""

    @property
    def query(self) -> Query:
        """Selects objects of ours."""
        return {} if self.kind in (RESOURCE, PROFILE) else {"labelSelector": LABEL_NAME}


@dataclass
class Found:
    """What the lists of one round have found."""

    changed: set[Key] = field(default_factory=set)
    """Adaptations whose objects changed without a report from a watch."""
    unreachable: str | None = None
    """Why no request reaches the API server, and the remaining lists of the round were left out; empty when one was
    answered; None when none was due."""


class Resync:
    """Knows which lists are due, and reads them. One thread lists; the other methods may be called from any."""

    def __init__(
        self,
        api: ApiServerClient,
        store: Store,
        namespaces: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            api: sends the requests.
            store: gets the objects.
            namespaces: namespaces to list; empty for all.
            clock: monotonic, in seconds.
        """
        self._api = api
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        """Guards the fields of the lists; never held during a request."""
        self._lists = [
            _List(kind, namespace)
            for kind in LISTED_KINDS
            for namespace in ((namespaces or (None,)) if KINDS[kind].is_namespaced else (None,))
        ]

    def list_due(self, interval_seconds: float) -> Found:
        """Read the lists that are due; each is due again after `interval_seconds`, or sooner when it failed.

        Of the other lists it reads the objects that were requested.
        """
        found = Found()
        for item in self._lists:
            is_due = self._clock() >= item.due
            if not is_due and not item.outdated:
                continue
            try:
                found.changed |= self._read(item) if is_due else self._read_outdated(item)
            except Exception as error:
                self._note_failure(item, error, interval_seconds)
                if _is_unreachable(error):
                    # Each further list would wait as long for nothing.
                    found.unreachable = str(error)
                    self._postpone(item.due)
                    return found
                found.unreachable = ""
            else:
                found.unreachable = ""
                if not is_due:
                    continue
                pause = min(ABSENT_SECONDS, interval_seconds) if item.is_absent else interval_seconds
                with self._lock:
                    item.due = min(item.due, self._clock() + pause)
        return found

    def request(self, namespace: str | None, after_seconds: float = 0.0) -> None:
        """Make the lists of a namespace due; None: the lists that have none.

        For when a watch has begun again, or has failed: these lists alone report what happened before it began.
        """
        due = self._clock() + after_seconds
        with self._lock:
            for item in self._lists:
                if item.namespace == namespace:
                    item.due, item.is_fresh = min(item.due, due), True

    def request_object(self, kind: str, namespace: str, name: str) -> None:
        """Have one object read by the next `list_due`: the list of a watch has a version that the store has not."""
        with self._lock:
            for item in self._lists:
                if item.kind == kind and item.namespace in (None, namespace):
                    item.outdated.add((namespace, name))

    def request_all(self) -> None:
        """Make every list due, and each show all that was written before."""
        for namespace in {item.namespace for item in self._lists}:
            self.request(namespace)

    def has_listed(self, namespace: str) -> bool:
        """Whether everything that decisions about the adaptations of a namespace depend on was read once."""
        return all(
            item.is_listed or item.is_absent for item in self._lists if item.namespace in (None, namespace)
        )

    def listable_kinds(self, namespace: str | None) -> tuple[str, ...]:
        """Return the kinds whose last list in a namespace could be read; None: of the lists without a namespace."""
        return tuple(
            item.kind
            for item in self._lists
            if item.namespace == namespace and item.is_listed and not item.is_absent and not item.error
        )

    def failures(self) -> tuple[FailedList, ...]:
        """Return the lists that cannot be read at the moment."""
        return tuple(
            FailedList(item.kind, item.namespace or "", item.error, item.is_unreachable)
            for item in self._lists
            if item.error
        )

    @property
    def oldest_list(self) -> float | None:
        """Unix time at which the list was begun that is the oldest of all; None until each was read once."""
        times = [item.read_at for item in self._lists if not item.is_absent]
        return None if None in times else min((begun for begun in times if begun is not None), default=None)

    def _postpone(self, until: float) -> None:
        with self._lock:
            for item in self._lists:
                item.due = max(item.due, until)

    # --- one list ---

    def _read(self, item: _List) -> set[Key]:
        with self._lock:
            # Before the request: whatever asks for the list from now on wants another one.
            item.due, is_fresh, item.is_fresh = float("inf"), item.is_fresh, False
            # The list has them too, unless it may come from the server's memory, which may be a moment old.
            if is_fresh:
                item.outdated.clear()
        is_absent, begun = False, time.time()
        changed: set[Key] = set()
        try:
            changed = self._changes(
                item, lambda: self._compare(item, is_fresh) if item.is_listed else self._replace(item)
            )
        except ApiError as error:
            # JobSet is not installed, or the operator may not read it: the server checks rights first, so a kind that
            # does not exist may be answered with 403 too.
            is_absent = item.kind == "JobSet" and error.status in (403, 404)
            if not is_absent:
                raise
        item.is_listed, item.is_absent = item.is_listed or not is_absent, is_absent
        item.error, item.num_failures, item.read_at = "", 0, begun
        return changed

    def _note_failure(self, item: _List, error: Exception, interval_seconds: float) -> None:
        pause = min(REFUSED_SECONDS, RETRY_SECONDS * 2.0 ** min(item.num_failures, 30))
        if isinstance(error, RequestRefusedError):
            pause = REFUSED_SECONDS
        item.error = str(error) if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
        item.is_unreachable = _is_unreachable(error)
        item.num_failures += 1
        with self._lock:
            item.due, item.is_fresh = min(item.due, self._clock() + min(pause, interval_seconds)), True

    def _read_outdated(self, item: _List) -> set[Key]:
        """Read the objects that were requested. When that fails, the whole list is due soon."""
        with self._lock:
            requested, item.outdated = item.outdated, set()
        return self._changes(item, lambda: self._read_objects(item, tuple(requested)))

    def _changes(self, item: _List, read: Callable[[], set[Key]]) -> set[Key]:
        """Bring the store up to date; return the adaptations whose objects changed."""
        profiles_before = self._store.profile_versions()
        changed = read()
        if item.kind == PROFILE:
            # The store reports no key for a profile; a new, changed or removed one affects all that name it, or none.
            for name in {name for name, _ in profiles_before ^ self._store.profile_versions()}:
                changed |= set(self._store.keys_of_profile(name))
        return changed

    def _replace(self, item: _List) -> set[Key]:
        try:
            return self._replace_once(item, item.query)
        except ApiError as error:
            if error.status != 410:
                raise
        # The server dropped the list's moment between two pages; the second list starts at a new one.
        return self._replace_once(item, item.query)

    def _replace_once(self, item: _List, query: Query) -> set[Key]:
        if item.kind == RESOURCE:
            query = query | {"limit": RESOURCE_PAGE_ITEMS}
        first, items = self._items(item, query)
        return self._store.replace(item.kind, items, _version_of(first) or None, item.namespace)

    def _compare(self, item: _List, is_fresh: bool) -> set[Key]:
        query = item.query | {"limit": _METADATA_PAGE_ITEMS}
        if not is_fresh:
            query["resourceVersion"] = "0"
        first, items = self._items(item, query, metadata_alone=True)
        comparison = self._store.compare(item.kind, items, _version_of(first), item.namespace)
        outdated = [(namespace, name) for _, namespace, name in comparison.outdated]
        return self._read_objects(item, outdated) | comparison.changed

    def _read_objects(self, item: _List, names: Sequence[tuple[str, str]]) -> set[Key]:
        """Read objects by namespace and name; of many the whole list."""
        if len(names) > MAX_SINGLE_READS:
            return self._replace(item)
        changed: set[Key] = set()
        for namespace, name in names:
            # A list of one object: the operator has no right to get each kind.
            path = KINDS[item.kind].collection(namespace or None)
            for page in self._api.pages(path, {"fieldSelector": f"metadata.name={name}"}, attempts=_ATTEMPTS):
                for body in with_kind(item.kind, page):
                    key = self._store.put(body)
                    changed |= {key} if key is not None else set()
        return changed

    def _items(
        self, item: _List, query: Query, *, metadata_alone: bool = False
    ) -> tuple[Manifest, Iterator[Manifest]]:
        """Return the first page of a list, and all items."""
        path = KINDS[item.kind].collection(item.namespace)
        pages = self._api.pages(path, query, metadata_alone=metadata_alone, attempts=_ATTEMPTS)
        first = next(pages)
        return first, all_items(item.kind, first, pages)


def _is_unreachable(error: Exception) -> bool:
    """Whether no connection to the API server was made; a list that only takes too long says nothing about others."""
    return isinstance(error, ApiError) and error.status == 0 and error.reason not in _AFTER_CONNECTING


def all_items(kind: str, first: Manifest, rest: Iterator[Manifest]) -> Iterator[Manifest]:
    """Yield the objects of all pages of a list."""
    page: Manifest | None = first
    while page is not None:
        yield from with_kind(kind, page)
        page = next(rest, None)


def with_kind(kind: str, page: Manifest) -> Iterator[Manifest]:
    """Yield the objects of a page with their kind, which the items of a list do not have."""
    for item in page.get("items") or []:
        yield {**item, "kind": kind, "apiVersion": KINDS[kind].api_version}


def _version_of(page: Manifest) -> str:
    return str((page.get("metadata") or {}).get("resourceVersion") or "")
