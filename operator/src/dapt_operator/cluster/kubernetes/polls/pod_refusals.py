"""Why a Job has no pods: what the API server answered the Job controller, which tells it in an Event alone."""

from __future__ import annotations

from dapt_operator.cluster.kubernetes.polls.poller import TIMEOUT_SECONDS, Poller
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.launchers.jobset import job_name
from dapt_operator.stage_run import Manifest

LOOK_AGAIN_SECONDS = 10.0
_MOST_EVENTS = 20


class PodRefusals(Poller[str]):
    """The Job controller's newest sentence on runs that ought to have pods and have none; empty: it says nothing."""

    first_look_seconds = 3.0
    """What the Job controller gets to make pods, from when the run was first seen without."""

    def _ask(self, run: Manifest) -> str:
        metadata = run["metadata"]
        job = job_name(metadata["name"]) if run["kind"] == "JobSet" else metadata["name"]
        chosen = f"involvedObject.kind=Job,involvedObject.name={job},reason=FailedCreate"
        path = KINDS["Event"].collection(str(metadata["namespace"]))
        query = {"fieldSelector": chosen, "limit": _MOST_EVENTS}
        answer = self._api.get(path, query, attempts=1, timeout_seconds=TIMEOUT_SECONDS)
        events = (answer or {}).get("items") or []
        newest: Manifest = max(events, key=lambda item: str(item.get("lastTimestamp") or ""), default={})
        return str(newest.get("message") or "")

    def _rest_seconds(self, asked_for_seconds: float) -> float:  # noqa: ARG002
        return LOOK_AGAIN_SECONDS
