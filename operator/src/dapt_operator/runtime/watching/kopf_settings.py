"""Configures kopf to watch and to do nothing else; each number with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

from dapt_operator.api.names import LABEL_UID
from dapt_operator.cluster.kubernetes.client import PAGE_ITEMS
from dapt_operator.runtime.watching.kopf_library import kopf
from dapt_operator.runtime.watching.watched_kinds import JOBSETS

BOOKMARK_SECONDS: Final = 60.0
"""The API server sends each watch a bookmark about this often, so longer silence means a dead connection."""


class EndlessPauses:
    """Yields the pauses between the attempts of one API request of kopf, in seconds, without end.

    With an end, kopf would give up when the API server is unreachable for longer, and the whole operator with it.
    """

    _FIRST: ClassVar = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
    _REPEATED: ClassVar = 15.0

    def __iter__(self) -> Iterator[float]:
        yield from self._FIRST
        while True:
            yield self._REPEATED


class NoHistory(kopf.DiffBaseStorage):
    """Stores nothing about an object, so nothing is written to it.

    Only kopf's high-level handlers need a stored state, and none are registered. It also saves a deep copy of each
    object at each event.
    """

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise AssertionError("kopf must not write to an object")


def set_kopf(settings: kopf.OperatorSettings) -> None:
    """Set kopf to watch and to do nothing else."""
    settings.posting.enabled = False  # the operator posts its own fixed set of Events
    settings.peering.standalone = True  # the operator's Lease decides who acts
    # The operator has no rights on CRDs and namespaces, and finds out itself which kinds exist.
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoHistory()
    # The numbers of a watch belong together. The server ends each after about 5 minutes, and kopf continues where it
    # was (no new list). A dead connection is noticed by silence, or at the latest a little after the server should
    # have ended it.
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = BOOKMARK_SECONDS + 15
    settings.watching.reconnect_backoff = 0.5
    settings.watching.chunk_size = PAGE_ITEMS  # so that memory does not peak
    for kind in (("v1", "pods"), ("batch", "v1", "jobs"), (JOBSETS.group, JOBSETS.version, JOBSETS.plural)):
        settings.watching.label_selectors[kind] = LABEL_UID  # the API server sends only objects of ours
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = EndlessPauses()
    settings.queueing.worker_limit = None  # a limit keeps a slot for idle_timeout after each event
    settings.queueing.idle_timeout = 1.0  # an object's last body stays in kopf's memory that long
    settings.queueing.exit_timeout = 0.5  # nothing is lost: handlers only store and wake
    settings.process.ultimate_exiting_timeout = None  # the operator ends its process itself
