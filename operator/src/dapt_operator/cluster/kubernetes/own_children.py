"""Narrows what the cache has of an adaptation down to the objects of its runs, by owner and uid.

The cache knows children by their labels. Anybody may copy labels to a pod of their own, and whoever may edit a Job can
remove them from one of ours. So a pod counts by the uid of the Job that controls it, and a run that the status knows as
open is looked for by its name before it counts as lost: it would be started a second time next to the first.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import ValidationError

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api.names import object_name
from dapt_operator.cluster.kubernetes.cache.entry import Target
from dapt_operator.cluster.kubernetes.cache.projection import project
from dapt_operator.cluster.kubernetes.cache.store import ResourceWithChildren, Store
from dapt_operator.cluster.kubernetes.client import ApiServerClient
from dapt_operator.cluster.kubernetes.polls.targets import run_of
from dapt_operator.cluster.kubernetes.resources import KINDS
from dapt_operator.launchers.labels import (
    child_job_name,
    controller_of,
    held_run,
    is_named_by_its_job,
    orphan_of,
)
from dapt_operator.launchers.observe.run_states import job_uid_of
from dapt_operator.stage_run import Manifest

_NEXT_REQUEST_SECONDS: Final = 5.0
_MAX_JOB_SETS: Final = 20_000


@dataclass(frozen=True)
class OwnChildren:
    """A resource with the objects of its runs."""

    resource: Manifest
    jobs: tuple[Manifest, ...]
    """Jobs and JobSets."""
    pods: tuple[Manifest, ...]
    orphans: tuple[Manifest, ...]
    """Pods that were left without their Job or JobSet."""
    child_jobs: dict[str, str]
    """Uid of the Job of each JobSet, by name of the JobSet."""


@dataclass
class _ChildJob:
    """What is known of the Job of one JobSet."""

    uid: str = ""
    next_request: float = field(default=float("-inf"))


class ChildrenFilter:
    """Finds the own children of adaptations; remembers the Jobs of their JobSets."""

    def __init__(
        self, api: ApiServerClient, store: Store, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._store = store
        self._clock = clock
        self._child_jobs: OrderedDict[str, _ChildJob] = OrderedDict()
        """By uid of the JobSet."""

    def own_children(self, cached: ResourceWithChildren, launcher: str) -> OwnChildren | None:
        """Return the objects of the runs of a resource; None when there is no resource.

        Args:
            cached: what the store has of it.
            launcher: that the profile names; a run whose object is hidden is looked for as what it creates.

        Raises:
            ApiError: an object had to be read and could not be.
        """
        if cached.resource is None:
            return None
        # The Job controller adopts pods that somebody made with the labels of its own, whatever their name.
        owned = [pod for pod in cached.pods if job_uid_of(pod) and is_named_by_its_job(pod)]
        jobs = (*cached.jobs, *self._hidden_runs(cached.resource, cached.jobs, launcher))
        orphans = tuple(_orphans(cached.pods, {str(job["metadata"]["name"]) for job in jobs}))
        child_jobs = {}
        for job in jobs:
            if job["kind"] == "JobSet" and (uid := self._child_job(job, owned)):
                child_jobs[str(job["metadata"]["name"])] = uid
        # A JobSet's own uid is among them; it controls no pod.
        uids = {str(job["metadata"]["uid"]) for job in jobs} | set(child_jobs.values())
        pods = tuple(pod for pod in owned if job_uid_of(pod) in uids)
        return OwnChildren(cached.resource, jobs, pods, orphans, child_jobs)

    def own_targets(self) -> tuple[Target, ...]:
        """Return the pods of our runs that serve live readings."""
        return tuple(target for target in self._store.targets() if target.job_uid in self._job_uids(target))

    def _job_uids(self, target: Target) -> tuple[str, ...]:
        """Return the uids of the Jobs whose pods may speak for the holder that a pod's labels name."""
        uids = []
        if job := self._store.uid("Job", target.key.namespace, target.holder):
            uids.append(job[0])
        if job_set := self._store.uid("JobSet", target.key.namespace, target.holder):
            child = self._child_jobs.get(job_set[0])
            uids.append(child.uid if child is not None else "")
        return tuple(uids)

    def _hidden_runs(
        self, resource: Manifest, jobs: tuple[Manifest, ...], launcher: str
    ) -> Iterator[Manifest]:
        """Yield the objects of open runs that the cache does not have although they exist."""
        names = {str(job["metadata"]["name"]) for job in jobs}
        kinds = ("JobSet", "Job") if launcher == "JobSet" else ("Job",)
        for name in open_run_names(resource):
            if name in names:
                continue
            for kind in kinds:
                body = self._api.get(KINDS[kind].path(str(resource["metadata"]["namespace"]), name))
                if body is None:
                    continue
                found = project({"apiVersion": KINDS[kind].api_version, **body, "kind": kind})
                held = held_run(found)
                if held is not None and held.identity.uid == resource["metadata"]["uid"]:
                    yield found
                    break

    def _child_job(self, job_set: Manifest, pods: Sequence[Manifest]) -> str:
        """Return the uid of the Job that a JobSet has created; empty while it has none, or none with pods."""
        metadata, run = job_set["metadata"], run_of(job_set)
        child = self._child_jobs.setdefault(str(metadata["uid"]), _ChildJob())
        while len(self._child_jobs) > _MAX_JOB_SETS:
            self._child_jobs.popitem(last=False)
        claimed = {job_uid_of(pod) for pod in pods if run_of(pod) == run}
        now = self._clock()
        # Its pods name it before any watch of ours has reported it: JobSet gives its Jobs none of our labels.
        if claimed - {child.uid} and now >= child.next_request:
            child.next_request = now + _NEXT_REQUEST_SECONDS
            path = KINDS["Job"].path(str(metadata["namespace"]), child_job_name(str(metadata["name"])))
            job = self._api.get(path) or {}
            controller = controller_of(job)
            if controller.get("kind") == "JobSet" and controller.get("uid") == metadata["uid"]:
                child.uid = str(job["metadata"]["uid"])
        return child.uid


def _orphans(pods: Sequence[Manifest], holders: Container[str]) -> Iterator[Manifest]:
    """Yield the pods without an owner, and those whose Job is that of a JobSet which is gone."""
    for pod in pods:
        orphan = orphan_of(pod)
        if orphan is not None and (not job_uid_of(pod) or orphan.holder not in holders):
            yield pod


def open_run_names(resource: Manifest) -> tuple[str, ...]:
    """Return the names of the Jobs or JobSets of the runs that the stored status does not know to have ended."""
    status = resource.get("status")
    ledger = status.get("ledger") if isinstance(status, dict) else None
    records = ledger.get("runs") if isinstance(ledger, dict) else None
    found = (
        _open_run_name(resource["metadata"], record)
        for record in (records if isinstance(records, list) else ())
    )
    return tuple(name for name in found if name)


def _open_run_name(metadata: Manifest, record: Manifest) -> str:
    """Return the name of the object of a record's newest run; empty when it has ended, or cannot be read."""
    try:
        if record.get("state", "Open") != "Open":
            return ""
        identity = RunIdentity(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            stage=record["stage"],
            attempt=record.get("attempt", 1),
            candidate=record.get("candidate"),
            try_number=record.get("try", 1),
            fence=record["fence"],
        )
    except (AttributeError, KeyError, TypeError, ValidationError):
        return ""  # somebody has edited the status; the planner reports what is wrong with it
    return object_name(identity.name, identity.stage, identity.key)
