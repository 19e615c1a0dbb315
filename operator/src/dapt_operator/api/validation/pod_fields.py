"""Who owns which field of a pod: the operator, or the profile's `podTemplate`.

One entry a field of Kubernetes' PodTemplateSpec, PodSpec and (of the container `trainer`) Container; a test compares
the names with the client library's models, so a field that Kubernetes adds is decided here before anybody uses it. What
the operator owns is refused in a template, never silently replaced. The table of docs/profiles.md is made from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TRAINER: Final = "trainer"
"""Name of the container that runs the stage."""


class Whose(StrEnum):
    """Who owns a field."""

    OPERATOR = "operator"
    PROFILE = "profile"
    BOTH = "both"


class Shape(StrEnum):
    """What a field holds, as far as it is looked at; Kubernetes judges what lies deeper."""

    BLOCK = "a block"
    BLOCKS = "a list of blocks"
    TEXT = "a text"
    NUMBER = "a whole number"
    TRUTH = "true or false"
    TEXTS = "a block of texts"


@dataclass(frozen=True)
class PodField:
    """One field. says: what becomes of it; for the operator's, what to use instead."""

    shape: Shape
    whose: Whose
    says: str


def _operator(shape: Shape, says: str) -> PodField:
    return PodField(shape, Whose.OPERATOR, says)


def _profile(shape: Shape, says: str = "as written") -> PodField:
    return PodField(shape, Whose.PROFILE, says)


def _both(shape: Shape, says: str) -> PodField:
    return PodField(shape, Whose.BOTH, says)


METADATA: Final[dict[str, PodField]] = {
    "labels": _both(Shape.TEXTS, "added to the run's own, which begin with dapt.dev/"),
    "annotations": _profile(Shape.TEXTS),
}
"""Below `metadata`; all else there is made by the Job controller."""

POD: Final[dict[str, PodField]] = {
    "activeDeadlineSeconds": _operator(Shape.NUMBER, "the Job's deadline follows from limits.gpuHours"),
    "affinity": _profile(Shape.BLOCK),
    "automountServiceAccountToken": _operator(Shape.TRUTH, "no pod gets a Kubernetes API token"),
    "containers": _both(
        Shape.BLOCKS, "the one named trainer is merged as below; others run beside it as written"
    ),
    "dnsConfig": _profile(Shape.BLOCK),
    "dnsPolicy": _profile(Shape.TEXT, "as written; absent with hostNetwork: ClusterFirstWithHostNet"),
    "enableServiceLinks": _profile(Shape.TRUTH, "as written; absent: false"),
    "ephemeralContainers": _operator(Shape.BLOCKS, "they are added to a running pod, with kubectl debug"),
    "hostAliases": _profile(Shape.BLOCKS),
    "hostIPC": _profile(Shape.TRUTH, "as written; breaks the restricted standard"),
    "hostNetwork": _profile(Shape.TRUTH, "as written, then give ports; breaks the restricted standard"),
    "hostPID": _profile(Shape.TRUTH, "as written; breaks the restricted standard"),
    "hostUsers": _profile(Shape.TRUTH),
    "hostname": _operator(Shape.TEXT, "the Job controller names pods, so that ranks find each other"),
    "hostnameOverride": _operator(Shape.TEXT, "the Job controller names pods, so that ranks find each other"),
    "imagePullSecrets": _profile(Shape.BLOCKS),
    "initContainers": _profile(Shape.BLOCKS),
    "nodeName": _operator(Shape.TEXT, "pods go through the scheduler; use nodeSelector"),
    "nodeSelector": _profile(Shape.TEXTS),
    "os": _profile(Shape.BLOCK),
    "overhead": _operator(Shape.BLOCK, "Kubernetes sets it; use runtimeClassName"),
    "preemptionPolicy": _operator(Shape.TEXT, "Kubernetes sets it; use a priority class"),
    "priority": _operator(Shape.NUMBER, "Kubernetes sets it; use priorityClassName"),
    "priorityClassName": _both(Shape.TEXT, "that of the adaptation where it has one"),
    "readinessGates": _profile(Shape.BLOCKS),
    "resourceClaims": _profile(Shape.BLOCKS),
    "resources": _operator(Shape.BLOCK, "use the adaptation's resources, or those of the container trainer"),
    "restartPolicy": _operator(Shape.TEXT, "a gang is tried again as a whole"),
    "runtimeClassName": _profile(Shape.TEXT),
    "schedulerName": _profile(Shape.TEXT),
    "schedulingGates": _profile(Shape.BLOCKS),
    "schedulingGroup": _operator(
        Shape.BLOCK, "it would be the same for all gangs; use an adaptation's queue"
    ),
    "securityContext": _both(Shape.BLOCK, "laid over the defaults, field by field"),
    "serviceAccount": _operator(Shape.TEXT, "Kubernetes' old name; use serviceAccountName"),
    "serviceAccountName": _profile(Shape.TEXT, "as written, for cloud identities; no API token is mounted"),
    "setHostnameAsFQDN": _operator(
        Shape.TRUTH, "the Job controller names pods, so that ranks find each other"
    ),
    "shareProcessNamespace": _operator(Shape.TRUTH, "the agent that judges the ranks must be process 1"),
    "subdomain": _operator(Shape.TEXT, "ranks find each other below the gang's own"),
    "terminationGracePeriodSeconds": _operator(Shape.NUMBER, "use spec.terminationGracePeriodSeconds"),
    "tolerations": _both(Shape.BLOCKS, "added to that of lost nodes (30 s)"),
    "topologySpreadConstraints": _profile(Shape.BLOCKS),
    "volumes": _both(Shape.BLOCKS, "added to the run's own, whose names are taken"),
}
"""Below `spec`."""

CONTAINER: Final[dict[str, PodField]] = {
    "args": _operator(Shape.TEXTS, "the stage and its file"),
    "command": _operator(Shape.TEXTS, "the agent is process 1"),
    "env": _both(Shape.BLOCKS, "added to the run's own, whose names are taken; OMP_NUM_THREADS may be given"),
    "envFrom": _both(Shape.BLOCKS, "before the adaptation's credentials, which win"),
    "image": _operator(Shape.TEXT, "use spec.trainerImage"),
    "imagePullPolicy": _profile(Shape.TEXT),
    "lifecycle": _operator(Shape.BLOCK, "the agent saves when it is asked to stop"),
    "livenessProbe": _operator(Shape.BLOCK, "the agent judges liveness by the ranks' heartbeats"),
    "name": _profile(Shape.TEXT, "trainer"),
    "ports": _operator(Shape.BLOCKS, "use spec.ports"),
    "readinessProbe": _operator(Shape.BLOCK, "ranks look for each other before any is ready"),
    "resizePolicy": _operator(Shape.BLOCKS, "a gang's resources do not change while it runs"),
    "resources": _both(
        Shape.BLOCK, "devices and the like as written; CPU, memory and accelerators as the run asks"
    ),
    "restartPolicy": _operator(Shape.TEXT, "a gang is tried again as a whole"),
    "restartPolicyRules": _operator(Shape.BLOCKS, "a gang is tried again as a whole"),
    "securityContext": _both(Shape.BLOCK, "laid over the defaults, field by field"),
    "startupProbe": _operator(Shape.BLOCK, "use spec.startupTimeoutSeconds"),
    "stdin": _operator(Shape.TRUTH, "nobody types into a stage"),
    "stdinOnce": _operator(Shape.TRUTH, "nobody types into a stage"),
    "terminationMessagePath": _operator(Shape.TEXT, "the operator reads how a stage ended there"),
    "terminationMessagePolicy": _operator(Shape.TEXT, "the operator reads how a stage ended there"),
    "tty": _operator(Shape.TRUTH, "nobody types into a stage"),
    "volumeDevices": _profile(Shape.BLOCKS),
    "volumeMounts": _both(Shape.BLOCKS, "added to the run's own, whose paths are taken"),
    "workingDir": _operator(Shape.TEXT, "stages know their folders from the environment"),
}
"""Below the item of `spec.containers` whose name is trainer."""

VOLUME_NAMES: Final = ("work", "scratch", "shared-memory", "stage", "signing", "model-cache")
"""Volumes of a run; claims of pvc:// are claim-0 and so on."""
CLAIM_VOLUME_PREFIX: Final = "claim-"
MOUNT_PATHS: Final = ("/work", "/scratch", "/dev/shm", "/etc/dapt", "/mnt/claims", "/mnt/model-cache")
"""Folders of a run: nothing is mounted on, below or over them."""
ENVIRONMENT_PREFIXES: Final = ("DAPT_", "PET_")
ENVIRONMENT: Final = (
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "PYTHONUNBUFFERED",
    "TMPDIR",
    "XDG_CACHE_HOME",
)
"""Variables of a run, besides those of `ENVIRONMENT_PREFIXES`."""
LABEL_PREFIXES: Final = ("dapt.dev/", "batch.kubernetes.io/", "jobset.sigs.k8s.io/")
LABELS: Final = ("app.kubernetes.io/managed-by", "kueue.x-k8s.io/queue-name")
"""Labels of a run, besides those of `LABEL_PREFIXES`."""


def ownership_table() -> str:
    """The table of docs/profiles.md, in Markdown."""
    rows = ["| field of `podTemplate` | owner | what becomes of it |", "| --- | --- | --- |"]
    parts = (("metadata", METADATA), ("spec", POD), ("spec.containers[trainer]", CONTAINER))
    for where, fields in parts:
        rows += [f"| `{where}.{name}` | {field.whose} | {field.says} |" for name, field in fields.items()]
    return "\n".join(rows) + "\n"
