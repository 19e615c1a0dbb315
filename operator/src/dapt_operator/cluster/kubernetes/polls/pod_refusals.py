"""Polls why a Job lacks pods: controllers report the API server's refusal only in an Event."""

from __future__ import annotations

from typing import Final

from dapt_operator.cluster.kubernetes.client import Query
from dapt_operator.cluster.kubernetes.polls.poller import TIMEOUT_SECONDS, Poller
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.launchers.labels import child_job_name
from dapt_operator.launchers.observe.pod_waiting import refusal_message
from dapt_operator.stage_run import Manifest

_MAX_EVENTS: Final = 20
_JOB_REFUSED: Final = "JobCreationFailed"
"""Reason of the JobSet controller."""


class PodRefusals(Poller[str]):
    """Polls the controller's newest message on runs that have fewer pods than they should; empty: no message."""

    first_poll_seconds = 3.0
    """Time that the Job controller gets to create pods, counted from the first observation without one of them."""
    interval_seconds = 10.0

    def _poll(self, run: Manifest) -> str:
        metadata = run["metadata"]
        namespace, name = str(metadata["namespace"]), str(metadata["name"])
        if run["kind"] != "JobSet":
            return self._newest(
                namespace, f"involvedObject.kind=Job,involvedObject.name={name},reason=FailedCreate"
            )
        # Events name the Job that could not create its pods, which a JobSet has created under a name of its own; or the
        # JobSet itself, whose Job was refused.
        job = f"involvedObject.kind=Job,involvedObject.name={child_job_name(name)},reason=FailedCreate"
        job_set = f"involvedObject.kind=JobSet,involvedObject.name={name},reason={_JOB_REFUSED}"
        return self._newest(namespace, job) or self._newest(namespace, job_set)

    def _newest(self, namespace: str, selector: str) -> str:
        query: Query = {"fieldSelector": selector, "limit": _MAX_EVENTS}
        path = KINDS["Event"].collection(namespace)
        answer = self._api.get(path, query, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        events: list[Manifest] = (answer or {}).get("items") or []
        return refusal_message(events)
