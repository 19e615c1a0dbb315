"""Polls why a pod on its node does not start: volumes and its network are reported only in Events."""

from __future__ import annotations

from typing import Final

from dapt_operator.cluster.kubernetes.client import Query
from dapt_operator.cluster.kubernetes.polls.poller import TIMEOUT_SECONDS, Poller
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.launchers.observe.pod_waiting import event_sentence
from dapt_operator.stage_run import Manifest

_MAX_EVENTS: Final = 50


class PodEvents(Poller[str]):
    """Polls what Events say of pods that wait without a reason in their status; empty: nothing is in their way."""

    first_poll_seconds = 15.0
    """Time that a pod gets to start, counted from the first observation of it on its node."""
    interval_seconds = 30.0

    def _poll(self, run: Manifest) -> str:
        metadata = run["metadata"]
        # By uid too: a pod of the same name may have existed before.
        selector = f"involvedObject.name={metadata['name']},involvedObject.uid={metadata['uid']}"
        query: Query = {"fieldSelector": selector, "limit": _MAX_EVENTS}
        path = KINDS["Event"].collection(str(metadata["namespace"]))
        answer = self._api.get(path, query, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        return event_sentence((answer or {}).get("items") or [])
