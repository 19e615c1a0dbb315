"""One run of one stage, as the planner asks for it and as the launcher reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from dapt_contract.base import Contract
from dapt_contract.failure import Cause
from dapt_contract.progress import Progress
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_operator.api.names import object_name

Manifest = Mapping[str, Any]
"""A Kubernetes object as plain JSON values."""


@dataclass(frozen=True)
class Owner:
    """The DomainAdaptation that owns every object of its runs."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class RunResources:
    """What one run asks for."""

    nodes: int
    processes_per_node: int
    accelerators_per_node: int
    """0 on CPU, whatever the number of processes."""
    cpu: str | None
    """A Kubernetes quantity a pod."""
    memory: str | None


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
    """Secrets whose keys become environment variables; prepare and publish only."""
    signs_checkpoints: bool = False
    """Whether the run mounts the signing key."""
    queue: str | None = None
    """Kueue LocalQueue: the object is created suspended, with Kueue's label."""
    priority_class_name: str | None = None
    """Of the pods."""
    claims: tuple[str, ...] = ()
    """Claims of the namespace that the run reads or writes below /mnt/claims/NAME (`pvc://` in the spec)."""

    @property
    def stage_file(self) -> StageFile:
        """The content of stage.json."""
        return StageFile(run=self.identity, kind=self.kind, config=self.config)

    @property
    def name(self) -> str:
        """Name of the Job and of the ConfigMap of stage.json."""
        return object_name(self.identity.name, self.identity.stage, self.identity.key)


class RunPhase(StrEnum):
    """Where a run stands, folded from its Job and pods."""

    PENDING = "Pending"
    """Created, no pod runs yet."""
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Quota(StrEnum):
    """What a queue says about a run."""

    WAITING = "Waiting"
    """Quota is in use elsewhere: it will be this run's turn."""
    NEVER = "Never"
    """It cannot be admitted as things stand: more than the queue's whole quota, or no such queue."""
    GRANTED = "Granted"


@dataclass(frozen=True)
class Hindrance:
    """Why pods cannot start until a person has done something."""

    reason: str
    """Of the table of conditions: SecretNotFound, ClaimNotFound, ImageNotPulled."""
    message: str


@dataclass(frozen=True)
class RunState:
    """What the objects of one run say. Each object counts into exactly one run, each run has exactly one
    phase."""

    identity: RunIdentity
    kind: str
    config_digest: str
    object_name: str
    phase: RunPhase
    cause: Cause | None = None
    """Set when failed."""
    exit_code: int | None = None
    message: str = ""
    """The run's own sentence, or why it waits."""
    facts: Contract | None = None
    """Parsed from the termination message; after a failure only pretraining has any."""
    created: datetime | None = None
    started: datetime | None = None
    completed: datetime | None = None
    accelerators: int = 0
    """Accelerators (on CPU: 0) the run held, for the GPU-hours."""
    last_log_lines: tuple[str, ...] = ()
    progress: Progress | None = None
    waiting_reason: str = ""
    """For a pending run: the scheduler's or kubelet's reason."""
    object_kind: str = "Job"
    """Kind of the object that holds the pods: what is deleted to stop the run."""
    peers_to_end: tuple[str, ...] = ()
    """Pods that are alive although another of the gang failed by itself: they only wait in a collective that never
    comes back, so they may be killed at once."""
    ailing: bool = False
    """One of its pods has failed and others are alive: it ends within seconds, told or not."""
    quota: Quota | None = None
    """None without a queue; also told of a running run, whose quota was granted."""
    quota_message: str = ""
    """The queue's own sentence."""
    hindrance: Hindrance | None = None
    """For a pending run that waits for a person."""
    tampered: str = ""
    """What was changed under the run, in one sentence; empty when nothing was or nobody looked."""
    stage_file_lost: bool = False
    """Its ConfigMap is gone while a pod of it still has to start, which it never can: the run is made anew."""
    deleting: bool = False
    """The object was deleted and is there until its pods are gone: nothing more is asked of it."""

    @property
    def is_live(self) -> bool:
        """Whether processes of it may be there, or come."""
        return self.phase in (RunPhase.PENDING, RunPhase.RUNNING)


@dataclass(frozen=True)
class Children:
    """The raw objects that belong to one adaptation, as a cluster adapter found them."""

    jobs: tuple[Manifest, ...] = ()
    """Jobs and JobSets that are ours; Jobs that a JobSet made are not among them."""
    pods: tuple[Manifest, ...] = ()
    progress: Mapping[str, Progress] = field(default_factory=dict)
    """Live readings by name of the Job or JobSet."""
    workloads: Mapping[str, Manifest] = field(default_factory=dict)
    """Kueue's Workload of a queued Job or JobSet, by its name; absent when there is none (yet)."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why the Job controller cannot make a run's pods, by name of the Job or JobSet."""
    logs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Last lines of failed pods, by pod name, as far as they could be read."""
    stage_digests: Mapping[str, str | None] = field(default_factory=dict)
    """SHA-256 of the stage.json that a run's ConfigMap holds, by name; None when the ConfigMap is gone, absent when
    nobody looked this time."""


def plain(value: Any) -> Any:
    """Deep copy of a manifest into plain dictionaries and lists."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
