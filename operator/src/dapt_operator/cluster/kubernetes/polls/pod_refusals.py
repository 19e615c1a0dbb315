"""Polls why a Job has no pods: the Job controller reports the API server's refusal only in an Event."""

from __future__ import annotations

from typing import Final

from dapt_operator.cluster.kubernetes.client import Query
from dapt_operator.cluster.kubernetes.polls.poller import TIMEOUT_SECONDS, Poller
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.launchers.jobset import job_name
from dapt_operator.stage_run import Manifest

_MAX_EVENTS: Final = 20


class PodRefusals(Poller[str]):
    """Polls the Job controller's newest message on runs that should have pods and have none; empty: no message."""

    first_poll_seconds = 3.0
    """Time that the Job controller gets to create pods, counted from the first observation without one."""
    interval_seconds = 10.0

    def _poll(self, run: Manifest) -> str:
        metadata = run["metadata"]
        # Events name the Job that could not create its pods, which a JobSet has created under a name of its own.
        job = job_name(metadata["name"]) if run["kind"] == "JobSet" else metadata["name"]
        selector = f"involvedObject.kind=Job,involvedObject.name={job},reason=FailedCreate"
        path = KINDS["Event"].collection(str(metadata["namespace"]))
        query: Query = {"fieldSelector": selector, "limit": _MAX_EVENTS}
        answer = self._api.get(path, query, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        events: list[Manifest] = (answer or {}).get("items") or []
        # The server sorts Events by name. An older refusal may be about a cause that was removed since.
        newest = max(events, key=lambda item: str(item.get("lastTimestamp") or ""), default={})
        return str(newest.get("message") or "")
