"""One run of one stage: what the planner requests (`StageRun`) and what a launcher reports (`RunState`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from dapt_contract.base import Contract
from dapt_contract.pod.environment import UNCONNECTED_KINDS
from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_operator.api.json_values import plain as plain
from dapt_operator.api.names import object_name
from dapt_operator.api.v1alpha1.stored.run_record import StageKey

Manifest = Mapping[str, Any]
"""A Kubernetes object, or a part of one, as plain JSON values; read only."""
JsonObject = dict[str, Any]
"""The same, while it is built or changed."""

HOLDER_KINDS: Final = ("Job", "JobSet")
"""Kinds of object that hold the pods of a run."""
MAX_MESSAGE_CHARACTERS: Final = 4000
"""Length of a run's message."""
MAX_QUOTE_CHARACTERS: Final = 1000
"""Length of a sentence that is quoted from the API server or from a queue; a webhook may send any amount."""


@dataclass(frozen=True)
class Owner:
    """The DomainAdaptation that owns every object of its runs."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class RunResources:
    """What one run requests."""

    nodes: int
    processes_per_node: int
    accelerators_per_node: int
    """0 on CPU, whatever the number of processes."""
    cpu: str | None
    """Kubernetes quantity for each pod."""
    memory: str | None
    """Kubernetes quantity for each pod."""


def connected_nodes(kind: str, resources: RunResources) -> int:
    """Return how many pods of a stage find each other by name: 1 where all work alone."""
    return 1 if kind in UNCONNECTED_KINDS else resources.nodes


@dataclass(frozen=True)
class StageRun:
    """A run to create: identity, work, resources. Rendered by a launcher."""

    identity: RunIdentity
    kind: str
    config: Contract
    resources: RunResources
    deadline_seconds: int | None = None
    """Active deadline of the Job, from what is left of the GPU-hour limit."""
    secret_names: tuple[str, ...] = ()
    """Secrets with credentials (`dapt_contract/pod/credentials.py`); only of stages that read sources or write the
    destination."""
    signs_checkpoints: bool = False
    """Whether the run signs checkpoints, with the signing key."""
    signs_results: bool = False
    """Whether the run signs what it measured, with the same key."""
    key_digests: tuple[str, ...] = ()
    """SHA-256 of each signing key that its pods may use; empty: any."""
    queue: str | None = None
    """Kueue LocalQueue: the object is created suspended, with Kueue's label."""
    priority_class_name: str | None = None
    """Priority class of the pods."""
    stop_seconds: float | None = None
    """Estimated seconds that it needs to end its step and to write a checkpoint; None for a stage that writes none."""
    claims: tuple[str, ...] = ()
    """Claims of the namespace that the run reads or writes below /mnt/claims/NAME (`pvc://` in the spec)."""
    generation: int = 0
    """Generation of the spec that it is created from; 0 when it is not known."""
    profile_digest: str = ""
    """Digest of the profile that it is created from; empty when it is not known."""

    @property
    def needs_signing_key(self) -> bool:
        """Whether the run mounts the signing key."""
        return self.signs_checkpoints or self.signs_results

    @property
    def has_connected_pods(self) -> bool:
        """Whether it has several pods that find each other by name."""
        return connected_nodes(self.kind, self.resources) > 1

    @property
    def stage_file(self) -> StageFile:
        """Content of stage.json."""
        return StageFile(run=self.identity, kind=self.kind, config=self.config)

    @property
    def name(self) -> str:
        """Name of the Job and of the ConfigMap of stage.json."""
        return object_name(self.identity.name, self.identity.stage, self.identity.key)


class RunPhase(StrEnum):
    """Phase of a run, derived from its Job and pods."""

    PENDING = "Pending"
    """Created, no pod runs yet."""
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Quota(StrEnum):
    """What a queue reports about a run."""

    WAITING = "Waiting"
    """Quota is in use elsewhere; the run is admitted once it is released."""
    NEVER = "Never"
    """The run cannot be admitted without a change: it requests more than the queue's whole quota, or there is no such
    queue."""
    GRANTED = "Granted"


@dataclass(frozen=True)
class Hindrance:
    """A problem that keeps pods from starting until a user has fixed it."""

    reason: str
    """Condition reason: SecretNotFound, ClaimNotFound, ImageNotPulled or Refused."""
    message: str
    """What is wrong and what to do."""


@dataclass(frozen=True)
class RunState:
    """State of one run, read from its objects. Each object belongs to exactly one run, each run has exactly one
    phase."""

    identity: RunIdentity
    kind: str
    config_digest: str
    object_name: str
    phase: RunPhase
    cause: Cause | None = None
    """Set when the run failed."""
    exit_code: int | None = None
    message: str = ""
    """The sentence that the run reported, or why it waits."""
    facts: Contract | None = None
    """Facts from the termination message; after a failure only pretraining has any."""
    created: datetime | None = None
    started: datetime | None = None
    completed: datetime | None = None
    accelerators: int = 0
    """Accelerators that the run holds, for the GPU-hours; 0 on CPU."""
    last_log_lines: tuple[str, ...] = ()
    progress: Progress | None = None
    waiting_reason: str = ""
    """Reason of the scheduler or the kubelet, for a run that waits."""
    object_kind: str = "Job"
    """Kind of the object that holds the pods. Deleting that object stops the run."""
    object_uid: str = ""
    """Uid of that object."""
    child_uid: str = ""
    """Uid of the Job that the run's JobSet has created; empty for a Job, and while it is not known."""
    is_partly_running: bool = False
    """Whether some of its pods run, or have ended, while others have not started."""
    waiting_since: datetime | None = None
    """Creation of the first pod that has not started, of a gang that is partly running."""
    lingering_pods: tuple[str, ...] = ()
    """Pods whose trainer has ended and which have not: another container of theirs still runs. The run does not wait
    for them, and they hold what it held until somebody deletes them."""
    peers_to_end: tuple[str, ...] = ()
    """Pods that are alive although another pod of the gang failed by itself. They wait in a collective that never
    returns, so they may be killed at once."""
    has_failed_pod: bool = False
    """Whether one of its pods has failed while others are alive; such a run ends within seconds without a request."""
    has_deleted_pod: bool = False
    """Whether a living pod of it was deleted: its node reports its end, or it counts as gone after some time."""
    quota: Quota | None = None
    """None without a queue; `GRANTED` for a queued run that is running."""
    quota_message: str = ""
    """Sentence of the queue."""
    hindrance: Hindrance | None = None
    """Set for a run that waits and requires user action."""
    tampering: str = ""
    """What was changed in the run's files, in one sentence; empty when they are unchanged or were not checked."""
    is_child_replaced: bool = False
    """Whether another Job has taken the place of the one that the run's JobSet had created: its pods speak for nothing.
    """
    is_stage_file_lost: bool = False
    """Whether its ConfigMap is gone while a pod still has to start, which waits until the ConfigMap is there again."""
    stage_file_sha256: str = ""
    """SHA-256 of the stage.json that the run was started with, in hexadecimal; empty when it is not known."""
    key_digests: tuple[str, ...] = ()
    """SHA-256 of each signing key that its pods may use; empty: any, or it needs none."""
    generation: int = 0
    """Generation of the spec that the run was created from; 0 when its object does not say."""
    profile_digest: str | None = None
    """Digest of the profile that the run was created from; None when its object does not say."""
    is_deleting: bool = False
    """Whether the object was deleted and exists only until its pods are gone; it gets no further request."""
    is_gone: bool = False
    """Whether it was deleted a while ago and no process of it is left: somebody's finalizer keeps the object, from
    which nothing starts any more."""

    @property
    def is_live(self) -> bool:
        """Whether processes of the run may exist or may still start."""
        return self.phase in (RunPhase.PENDING, RunPhase.RUNNING)

    @property
    def is_steady(self) -> bool:
        """Whether all pods of the run are running: then no time limit of ours counts for it."""
        # A deleted pod counts as gone after some time without a report, and nothing wakes us then.
        is_ending = self.is_deleting or self.has_deleted_pod
        return self.phase is RunPhase.RUNNING and not self.is_partly_running and not is_ending

    @property
    def is_waiting(self) -> bool:
        """Whether a pod of it has not started."""
        return self.phase is RunPhase.PENDING or self.is_partly_running

    @property
    def reasons_to_wait(self) -> str:
        """What scheduler and kubelet report of its pods, which names an object that is missing."""
        return f"{self.message} {self.hindrance.message if self.hindrance is not None else ''}"

    @property
    def stage_key(self) -> StageKey:
        """Key of the work that the run does."""
        return StageKey.of(self.identity)

    def held_seconds(self, now: datetime) -> float:
        """Seconds from the start of the first process to the end, or until now; 0 before it."""
        if self.started is None:
            return 0.0
        return max(0.0, ((self.completed or now) - self.started).total_seconds())

    def accelerator_seconds(self, now: datetime) -> float:
        """Accelerators that the run holds times the seconds for which it has held them."""
        return self.accelerators * self.held_seconds(now)


@dataclass(frozen=True)
class OrphanPod:
    """A pod of a run whose Job or JobSet was deleted without it (`kubectl delete --cascade=orphan`). No object speaks
    for it any more and no controller ends it, while it holds its accelerators and goes on."""

    name: str
    identity: RunIdentity
    """Of the run, by the name of the pod, which nobody can change."""
    holder: str
    """Name that the Job or JobSet of the run had."""


@dataclass(frozen=True)
class Children:
    """The raw objects that belong to one adaptation, as a cluster adapter returns them."""

    jobs: tuple[Manifest, ...] = ()
    """Jobs and JobSets of the adaptation, without the Jobs that a JobSet created."""
    pods: tuple[Manifest, ...] = ()
    orphans: tuple[Manifest, ...] = ()
    """Pods with the adaptation's labels that were left without their Job or JobSet."""
    progress: Mapping[str, Progress] = field(default_factory=dict)
    """Live readings by name of the Job or JobSet."""
    workloads: Mapping[str, Manifest] = field(default_factory=dict)
    """Kueue's Workload of a queued Job or JobSet, by name of the Job or JobSet; absent when there is none (yet)."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why a run's pods cannot be created, by name of the Job or JobSet: the last message of their controller."""
    pod_events: Mapping[str, str] = field(default_factory=dict)
    """Why a pod on its node does not start, by pod name, as `Reason: message`: volumes, the pod's network, an image
    that is pulled. Only Events report it."""
    child_jobs: Mapping[str, str] = field(default_factory=dict)
    """Uid of the Job that a JobSet has created, by name of the JobSet; pods of a JobSet belong to that Job."""
    logs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Last lines of failed pods, by pod name; absent for a log that could not be read."""
    stage_digests: Mapping[str, str | None] = field(default_factory=dict)
    """SHA-256 of the stage.json in a run's ConfigMap, by name; None when the ConfigMap is gone, absent when it was not
    checked."""
