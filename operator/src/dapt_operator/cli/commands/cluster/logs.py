"""`dapt logs` finds the pods of a run by stage, attempt, candidate, try and rank; of pods that are gone it shows what
the status has kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dapt_client.access import ClusterAccess
from dapt_client.resources import status_of
from dapt_contract.pod.environment import COMPLETION_INDEX
from dapt_operator.api import names
from dapt_operator.api.v1alpha1.status import StageStatus
from dapt_operator.cli.display.stage_rows import stage_title
from dapt_operator.cli.errors import UserError
from dapt_operator.cluster.answers import whole_number
from dapt_operator.stage_run import JsonObject, Manifest


@dataclass(frozen=True)
class LogQuery:
    """Says whose log is wanted; None: of any, and then the newest run counts."""

    stage: str | None = None
    attempt: int | None = None
    candidate: str | None = None
    try_number: int | None = None
    rank: int | None = None
    """Node rank: number of the pod in its gang."""
    tail: int | None = None
    follow: bool = False

    def fits_stage(self, stage: StageStatus) -> bool:
        """Return whether a run in the status is meant."""
        return (
            self.stage in (None, stage.kind)
            and self.attempt in (None, stage.attempt)
            and self.candidate in (None, stage.candidate)
            and self.try_number in (None, stage.try_number)
        )

    def fits_pod(self, pod: Manifest) -> bool:
        """Return whether a pod belongs to a run that is meant."""
        labels = pod["metadata"].get("labels") or {}
        wanted = (
            (names.LABEL_KIND, self.stage),
            (names.LABEL_ATTEMPT, self.attempt),
            (names.LABEL_CANDIDATE, self.candidate),
            (names.LABEL_TRY, self.try_number),
        )
        return all(value is None or labels.get(label) == str(value) for label, value in wanted) and (
            self.rank is None or _rank(pod) == self.rank
        )


def log_lines(access: ClusterAccess, name: str, query: LogQuery) -> Iterator[str]:
    """Yield the lines of the newest run that fits; with several pods each line begins with its rank.

    Raises:
        UserError: nothing fits; says what there is.
    """
    resource = access.adaptation(name)
    pods = [pod for pod in access.pods(resource) if query.fits_pod(pod)]
    newest = _newest_run(pods)
    if not newest:
        yield from _kept_lines(access, resource, query)
        return
    if query.follow:
        yield from access.follow_log(str(newest[0]["metadata"]["name"]), query.tail)
        return
    found = False
    for pod in newest:
        lines = access.log(str(pod["metadata"]["name"]), query.tail)
        found = found or lines is not None
        prefix = f"[rank {_rank(pod)}] " if len(newest) > 1 else ""
        yield from (f"{prefix}{line}" for line in lines or ())
    if not found:
        raise UserError(
            f"{access.namespace}/{name}: the pods of {_title(newest[0])} have written nothing yet;"
            f" `dapt explain {name}` says what they wait for"
        )


def _newest_run(pods: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the pods of the run that was created last, by rank; of a pod that was created again the newest."""
    if not pods:
        return []
    run = _run(pods[-1])
    by_rank = {_rank(pod): pod for pod in pods if _run(pod) == run}
    return [by_rank[rank] for rank in sorted(by_rank)]


def _run(pod: Manifest) -> str:
    return str((pod["metadata"].get("labels") or {}).get(names.LABEL_RUN))


def _rank(pod: Manifest) -> int:
    metadata = pod["metadata"]
    for values in (metadata.get("annotations") or {}, metadata.get("labels") or {}):
        rank = whole_number(values.get(COMPLETION_INDEX, ""))
        if rank is not None:
            return rank
    return 0


def _title(pod: Manifest) -> str:
    labels = pod["metadata"].get("labels") or {}
    return f"{labels.get(names.LABEL_KIND)}, try {labels.get(names.LABEL_TRY)}"


def _kept_lines(access: ClusterAccess, resource: Manifest, query: LogQuery) -> Iterator[str]:
    """Yield the last lines of a failed rank that the status has kept, newest run first."""
    name = str(resource["metadata"]["name"])
    stages = status_of(resource).stages
    kept = [stage for stage in stages if stage.last_log_lines and query.fits_stage(stage)]
    if kept:
        stage = kept[-1]
        yield f"the pods of {stage_title(stage)} are gone; the last lines of the rank that failed were:"
        yield from stage.last_log_lines
        return
    ended = [stage_title(stage) for stage in stages if query.fits_stage(stage)]
    if ended:
        raise UserError(
            f"{access.namespace}/{name}: the pods of {ended[-1]} are gone, and of a run that did not fail no lines are"
            " kept; the cluster's own log collection may have them"
        )
    known = ", ".join(dict.fromkeys(stage.kind for stage in stages)) or "none"
    raise UserError(
        f"{access.namespace}/{name}: no run fits; stages that were started: {known}; leave out an option, or correct it"
    )
