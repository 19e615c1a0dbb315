"""Defines who owns each field of a pod: the operator, or the profile's `podTemplate`.

There is one entry for each field of Kubernetes' PodTemplateSpec, PodSpec and (of the container `trainer`) Container; a
test compares the names with the client library's models, so a field that Kubernetes adds is decided here before anybody
uses it. A field that the operator owns is refused in a template, never silently replaced. The table of docs/profiles.md
is generated from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TRAINER: Final = "trainer"
"""Name of the container that runs the stage."""


class Owner(StrEnum):
    """Whose value a field has."""

    OPERATOR = "operator"
    PROFILE = "profile"
    BOTH = "both"


class Shape(StrEnum):
    """What a field holds, as far as it is checked; Kubernetes checks what lies deeper."""

    BLOCK = "a block"
    BLOCKS = "a list of blocks"
    TEXT = "a text"
    NUMBER = "a whole number"
    BOOLEAN = "true or false"
    TEXT_MAP = "a block of texts"


@dataclass(frozen=True)
class PodField:
    """One field. effect: what becomes of a value in a template; for the operator's fields, what to use instead."""

    shape: Shape
    owner: Owner
    effect: str


def _operator(shape: Shape, effect: str) -> PodField:
    return PodField(shape, Owner.OPERATOR, effect)


def _profile(shape: Shape, effect: str = "as written") -> PodField:
    return PodField(shape, Owner.PROFILE, effect)


def _both(shape: Shape, effect: str) -> PodField:
    return PodField(shape, Owner.BOTH, effect)


METADATA: Final[dict[str, PodField]] = {
    "labels": _both(Shape.TEXT_MAP, "added to the run's own, which begin with dapt.dev/"),
    "annotations": _both(
        Shape.TEXT_MAP,
        "merged over those that keep autoscalers from evicting a pod (safe-to-evict, do-not-disrupt)",
    ),
}
"""Fields of `metadata`; the Job controller writes all others."""

POD: Final[dict[str, PodField]] = {
    "activeDeadlineSeconds": _operator(Shape.NUMBER, "the Job's deadline follows from limits.gpuHours"),
    "affinity": _profile(Shape.BLOCK),
    "automountServiceAccountToken": _operator(Shape.BOOLEAN, "no pod gets a Kubernetes API token"),
    "containers": _both(
        Shape.BLOCKS, "the one named trainer is merged as below; others run alongside as written"
    ),
    "dnsConfig": _profile(Shape.BLOCK),
    "dnsPolicy": _profile(Shape.TEXT, "as written; absent with hostNetwork: ClusterFirstWithHostNet"),
    "enableServiceLinks": _profile(Shape.BOOLEAN, "as written; absent: false"),
    "ephemeralContainers": _operator(Shape.BLOCKS, "they are added to a running pod, with kubectl debug"),
    "hostAliases": _profile(Shape.BLOCKS),
    "hostIPC": _profile(Shape.BOOLEAN, "as written; breaks the restricted standard"),
    "hostNetwork": _profile(Shape.BOOLEAN, "as written, then give ports; breaks the restricted standard"),
    "hostPID": _profile(Shape.BOOLEAN, "as written; breaks the restricted standard"),
    "hostUsers": _profile(Shape.BOOLEAN),
    "hostname": _operator(Shape.TEXT, "the Job controller names pods, so that ranks find each other"),
    "hostnameOverride": _operator(Shape.TEXT, "the Job controller names pods, so that ranks find each other"),
    "imagePullSecrets": _profile(Shape.BLOCKS),
    "initContainers": _profile(Shape.BLOCKS),
    "nodeName": _operator(Shape.TEXT, "pods go through the scheduler; use nodeSelector"),
    "nodeSelector": _profile(Shape.TEXT_MAP),
    "os": _profile(Shape.BLOCK),
    "overhead": _operator(Shape.BLOCK, "Kubernetes sets it; use runtimeClassName"),
    "preemptionPolicy": _operator(Shape.TEXT, "Kubernetes sets it; use a priority class"),
    "priority": _operator(Shape.NUMBER, "Kubernetes sets it; use priorityClassName"),
    "priorityClassName": _both(Shape.TEXT, "the adaptation's value wins where it has one"),
    "readinessGates": _profile(Shape.BLOCKS),
    "resourceClaims": _profile(Shape.BLOCKS),
    "resources": _operator(Shape.BLOCK, "use the adaptation's resources, or those of the container trainer"),
    "restartPolicy": _operator(Shape.TEXT, "all pods of a run are restarted together"),
    "runtimeClassName": _profile(Shape.TEXT),
    "schedulerName": _profile(Shape.TEXT),
    "schedulingGates": _profile(Shape.BLOCKS),
    "schedulingGroup": _operator(Shape.BLOCK, "it would be the same for all runs; use an adaptation's queue"),
    "securityContext": _both(Shape.BLOCK, "merged over the defaults, field by field"),
    "serviceAccount": _operator(Shape.TEXT, "Kubernetes' old name; use serviceAccountName"),
    "serviceAccountName": _profile(Shape.TEXT, "as written, for cloud identities; no API token is mounted"),
    "setHostnameAsFQDN": _operator(
        Shape.BOOLEAN, "the Job controller names pods, so that ranks find each other"
    ),
    "shareProcessNamespace": _operator(Shape.BOOLEAN, "the agent that watches the ranks must be process 1"),
    "subdomain": _operator(Shape.TEXT, "ranks find each other by the run's own subdomain"),
    "terminationGracePeriodSeconds": _operator(Shape.NUMBER, "use spec.terminationGracePeriodSeconds"),
    "tolerations": _both(Shape.BLOCKS, "added to those for lost nodes; their seconds are spec.nodeLoss"),
    "topologySpreadConstraints": _profile(Shape.BLOCKS),
    "volumes": _both(Shape.BLOCKS, "added to the run's own, whose names are reserved"),
}
"""Fields of `spec`."""

CONTAINER: Final[dict[str, PodField]] = {
    "args": _operator(Shape.TEXT_MAP, "they name the stage and its file"),
    "command": _operator(Shape.TEXT_MAP, "the agent is process 1"),
    "env": _both(
        Shape.BLOCKS, "added to the run's own, whose names are reserved; OMP_NUM_THREADS may be given"
    ),
    "envFrom": _both(
        Shape.BLOCKS, "placed before the adaptation's credentials (docs/security.md), which win"
    ),
    "image": _operator(Shape.TEXT, "use spec.trainerImage"),
    "imagePullPolicy": _profile(Shape.TEXT),
    "lifecycle": _operator(Shape.BLOCK, "the agent saves when a stop is requested"),
    "livenessProbe": _operator(Shape.BLOCK, "the agent judges liveness by the ranks' heartbeats"),
    "name": _profile(Shape.TEXT, "always trainer"),
    "ports": _operator(Shape.BLOCKS, "use spec.ports"),
    "readinessProbe": _operator(Shape.BLOCK, "ranks must find each other before any of them is ready"),
    "resizePolicy": _operator(Shape.BLOCKS, "resources do not change while a run is active"),
    "resources": _both(
        Shape.BLOCK, "devices and the like as written; CPU, memory and accelerators as the run requests"
    ),
    "restartPolicy": _operator(Shape.TEXT, "all pods of a run are restarted together"),
    "restartPolicyRules": _operator(Shape.BLOCKS, "all pods of a run are restarted together"),
    "securityContext": _both(Shape.BLOCK, "merged over the defaults, field by field"),
    "startupProbe": _operator(Shape.BLOCK, "use spec.startupTimeoutSeconds"),
    "stdin": _operator(Shape.BOOLEAN, "a stage reads no input"),
    "stdinOnce": _operator(Shape.BOOLEAN, "a stage reads no input"),
    "terminationMessagePath": _operator(Shape.TEXT, "the operator reads there how a stage ended"),
    "terminationMessagePolicy": _operator(Shape.TEXT, "the operator reads there how a stage ended"),
    "tty": _operator(Shape.BOOLEAN, "a stage reads no input"),
    "volumeDevices": _profile(Shape.BLOCKS),
    "volumeMounts": _both(Shape.BLOCKS, "added to the run's own, whose paths are reserved"),
    "workingDir": _operator(Shape.TEXT, "stages get their folders from the environment"),
}
"""Fields of the item of `spec.containers` whose name is trainer."""

VOLUME_NAMES: Final = ("work", "scratch", "shared-memory", "stage", "signing", "model-cache")
"""Volumes of a run; claims of pvc:// are claim-0 and so on."""
CLAIM_VOLUME_PREFIX: Final = "claim-"
MOUNT_PATHS: Final = ("/work", "/scratch", "/dev/shm", "/etc/dapt", "/mnt/claims", "/mnt/model-cache")
"""Folders of a run: a template may not mount on, below or over them."""
ENVIRONMENT_PREFIXES: Final = ("DAPT_", "PET_")
ENVIRONMENT: Final = (
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "PYTHONSAFEPATH",
    "PYTHONUNBUFFERED",
    "TMPDIR",
    "XDG_CACHE_HOME",
)
"""Environment variables of a run, besides those that begin with `ENVIRONMENT_PREFIXES`."""
LABEL_PREFIXES: Final = ("dapt.dev/", "batch.kubernetes.io/", "jobset.sigs.k8s.io/")
LABELS: Final = ("app.kubernetes.io/managed-by", "kueue.x-k8s.io/queue-name")
"""Labels of a run, besides those that begin with `LABEL_PREFIXES`."""


def ownership_table() -> str:
    """Return the table of docs/profiles.md, in Markdown."""
    rows = ["| field of `podTemplate` | owner | what becomes of it |", "| --- | --- | --- |"]
    parts = (("metadata", METADATA), ("spec", POD), ("spec.containers[trainer]", CONTAINER))
    for path, fields in parts:
        rows += [f"| `{path}.{name}` | {field.owner} | {field.effect} |" for name, field in fields.items()]
    return "\n".join(rows) + "\n"
