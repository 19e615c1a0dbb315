"""What is kept of one object, and whether it is one of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dapt_contract.pod import COMPLETION_INDEX
from dapt_operator.api.names import GROUP, LABEL_NAME, LABEL_RUN, LABEL_UID
from dapt_operator.api.v1alpha1.profile import DEFAULT_PROFILE_ANNOTATION
from dapt_operator.cluster.kubernetes.cache.projection import slim
from dapt_operator.cluster.port import Key
from dapt_operator.stage_run import Manifest

RESOURCE, PROFILE = "DomainAdaptation", "AdaptationProfile"
HOLDERS = ("Job", "JobSet")
"""Kinds that hold pods."""
KEPT = (RESOURCE, PROFILE, *HOLDERS, "Pod")
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
JOB_LABEL = "batch.kubernetes.io/job-name"
_ENDED = ("Succeeded", "Failed")

Place = tuple[str, str, str]
"""Kind, namespace, name."""


@dataclass(frozen=True)
class Target:
    """A pod that answers for its run."""

    key: Key
    holder: str
    """Name of the Job or JobSet."""
    run: str
    """First digits of the run key."""
    host: str
    port: int


@dataclass(slots=True)
class Entry:
    """One version of an object."""

    body: bytes
    """JSON."""
    uid: str
    version: int
    key: Key | None
    owner_uid: str = ""
    run: str = ""
    ended: bool = False
    """For a pod: it has said its last words."""
    gone: bool = False
    """Deleted, and kept for what it said until its Job goes too."""
    own: bool = False
    """A status that we wrote and no watch has told of yet."""
    target: Target | None = None
    profile: str = ""
    """Of a resource: the profile that it names."""
    is_default: bool = False
    """Of a profile: whether it serves resources that name none."""


def place_of(body: Manifest) -> Place:
    """Where an object stands."""
    metadata = body.get("metadata") or {}
    return (str(body.get("kind")), str(metadata.get("namespace") or ""), str(metadata.get("name")))


def read(body: Manifest) -> Entry | None:
    """What is kept of an object; None when it is not one of ours."""
    kind, metadata = body.get("kind"), body.get("metadata") or {}
    uid, version = str(metadata.get("uid", "")), version_of(metadata.get("resourceVersion"))
    namespace = str(metadata.get("namespace") or "")
    if kind == RESOURCE:
        profile = str((body.get("spec") or {}).get("profile") or "")
        return Entry(_text(body), uid, version, Key(namespace, str(metadata["name"])), profile=profile)
    if kind == PROFILE:
        annotations = metadata.get("annotations") or {}
        is_default = annotations.get(DEFAULT_PROFILE_ANNOTATION) == "true"
        return Entry(_text(body), uid, version, None, is_default=is_default)
    labels: Mapping[str, str] = metadata.get("labels") or {}
    name, owner = labels.get(LABEL_NAME), labels.get(LABEL_UID)
    if not name or not owner or not _is_ours(str(kind), metadata, owner):
        return None
    status = body.get("status") or {}
    return Entry(
        body=_text(body),
        uid=uid,
        version=version,
        key=Key(namespace, name),
        owner_uid=owner,
        run=labels.get(LABEL_RUN, ""),
        ended=kind == "Pod" and status.get("phase") in _ENDED,
        target=_target(body, Key(namespace, name)) if kind == "Pod" else None,
    )


def _text(body: Manifest) -> bytes:
    return json.dumps(slim(body), separators=(",", ":"), ensure_ascii=False).encode()


def _is_ours(kind: str, metadata: Mapping[str, Any], owner_uid: str) -> bool:
    """Jobs and JobSets are the resource's own; a Job that a JobSet made is not, its pods are. Labels prove nothing:
    controllers copy them."""
    owners = metadata.get("ownerReferences") or []
    owner: Mapping[str, Any] = next((item for item in owners if item.get("controller")), {})
    if kind == "Pod":
        return owner.get("kind") == "Job"
    return (
        owner.get("kind") == RESOURCE
        and str(owner.get("apiVersion", "")).startswith(f"{GROUP}/")
        and owner.get("uid") == owner_uid
    )


def _target(pod: Manifest, key: Key) -> Target | None:
    """Where a running first pod can be asked."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels, annotations = metadata["labels"], metadata.get("annotations") or {}
    index = annotations.get(COMPLETION_INDEX, labels.get(COMPLETION_INDEX))
    holder = labels.get(JOBSET_LABEL) or labels.get(JOB_LABEL)
    port = next(
        (
            port.get("containerPort")
            for container in (pod.get("spec") or {}).get("containers") or []
            for port in container.get("ports") or []
            if port.get("name") == "progress"
        ),
        None,
    )
    run, host = labels.get(LABEL_RUN), status.get("podIP")
    if status.get("phase") != "Running" or index != "0" or not (run and host and holder and port):
        return None
    return Target(key, str(holder), str(run), str(host), int(port))


def version_of(value: Any) -> int:
    """A resource version as a number; 0 for none."""
    return int(value) if str(value or "").isdigit() else 0
