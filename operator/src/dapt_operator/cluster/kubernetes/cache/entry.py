"""Decides what is kept of one object, and whether it is one of ours."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dapt_contract.pod.environment import COMPLETION_INDEX
from dapt_operator.api.names import GROUP, LABEL_NAME, LABEL_RUN, LABEL_UID
from dapt_operator.api.v1alpha1.profile import DEFAULT_PROFILE_ANNOTATION
from dapt_operator.cluster.answers import whole_number
from dapt_operator.cluster.kubernetes.cache.projection import project
from dapt_operator.cluster.port import Key
from dapt_operator.launchers.labels import controller_of, is_named_by_its_job, orphan_of
from dapt_operator.launchers.observe.containers import has_ended
from dapt_operator.stage_run import HOLDER_KINDS, JsonObject, Manifest

RESOURCE, PROFILE = "DomainAdaptation", "AdaptationProfile"
CACHED_KINDS: Final = (RESOURCE, PROFILE, *HOLDER_KINDS, "Pod")
JOBSET_LABEL: Final = "jobset.sigs.k8s.io/jobset-name"
JOB_LABEL: Final = "batch.kubernetes.io/job-name"
_COMPRESSED_BYTES: Final = 16 * 1024
"""Objects of this size and more are kept compressed: resources with a long history, which take a quarter then."""
_FASTEST: Final = 1

ObjectId = tuple[str, str, str]
"""Kind, namespace, name."""


@dataclass(frozen=True)
class Target:
    """A pod that serves live readings of its run."""

    key: Key
    holder: str
    """Name of the Job or JobSet."""
    run: str
    """First digits of the run key."""
    host: str
    port: int
    job_uid: str
    """Uid of the Job that controls the pod."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a reader of every resource needs of one version of it: nothing is parsed for it again."""

    samples: tuple[str, ...]
    """Lines of each of its series, for Prometheus."""
    owner: str = ""
    """The installation that it belongs to; empty when none has reconciled it yet."""
    is_readable: bool = True
    """Whether its status could be read."""


@dataclass(slots=True)
class Entry:
    """One version of an object."""

    body: bytes
    """JSON, compressed if it is long. The same content gives the same bytes."""
    uid: str
    version: int
    key: Key | None
    """The adaptation that it belongs to; None for a profile."""
    owner_uid: str = ""
    run: str = ""
    """First digits of the run key."""
    has_ended: bool = False
    """Whether it is a pod whose termination message is complete."""
    is_retained: bool = False
    """Whether it is a deleted pod that is kept for its termination message until its Job is deleted too."""
    is_own_write: bool = False
    """Whether it is a status that this process wrote and no watch has reported yet."""
    target: Target | None = None
    profile: str = ""
    """The profile that a resource names."""
    is_default: bool = False
    """Whether it is a profile that serves resources that name none."""
    summary: Summary | None = None
    """Of a resource."""


@dataclass(frozen=True)
class Comparison:
    """What a list of metadata says about the stored objects."""

    changed: frozenset[Key]
    """Adaptations with objects that are gone, and those with a change that no watch has reported."""
    outdated: tuple[ObjectId, ...]
    """Objects that are not stored in the listed version or a newer one."""


def id_of(body: Manifest) -> ObjectId:
    """Return kind, namespace and name of an object."""
    metadata = body.get("metadata") or {}
    return (str(body.get("kind")), str(metadata.get("namespace") or ""), str(metadata.get("name")))


def entry_of(body: Manifest) -> Entry | None:
    """Return what is kept of an object; None when it is not one of ours."""
    kind, metadata = body.get("kind"), body.get("metadata") or {}
    uid, version = str(metadata.get("uid", "")), version_of(metadata.get("resourceVersion"))
    namespace = str(metadata.get("namespace") or "")
    if kind == RESOURCE:
        profile = str((body.get("spec") or {}).get("profile") or "")
        return Entry(_body(body), uid, version, Key(namespace, str(metadata["name"])), profile=profile)
    if kind == PROFILE:
        annotations = metadata.get("annotations") or {}
        is_default = annotations.get(DEFAULT_PROFILE_ANNOTATION) == "true"
        return Entry(_body(body), uid, version, None, is_default=is_default)
    labels: Mapping[str, str] = metadata.get("labels") or {}
    name, owner_uid = labels.get(LABEL_NAME), labels.get(LABEL_UID)
    if not name or not owner_uid or not _is_ours(str(kind), metadata, owner_uid):
        return None
    key = Key(namespace, name)
    return Entry(
        body=_body(body),
        uid=uid,
        version=version,
        key=key,
        owner_uid=owner_uid,
        run=labels.get(LABEL_RUN, ""),
        has_ended=kind == "Pod" and has_ended(body),
        target=_target(body, key) if kind == "Pod" and is_named_by_its_job(body) else None,
    )


def content_of(body: bytes) -> JsonObject:
    """Return the object that an entry's body holds; each call makes a new one."""
    content: JsonObject = json.loads(body if body.startswith(b"{") else zlib.decompress(body))
    return content


def _body(manifest: Manifest) -> bytes:
    text = json.dumps(project(manifest), separators=(",", ":"), ensure_ascii=False).encode()
    return text if len(text) < _COMPRESSED_BYTES else zlib.compress(text, _FASTEST)


def _is_ours(kind: str, metadata: Manifest, owner_uid: str) -> bool:
    """Whether an object with our labels is ours, by its controlling owner.

    Labels prove nothing, because controllers copy them: a Job that a JobSet created has them and is not ours, while
    its pods are.
    """
    owner = controller_of({"metadata": metadata})
    if kind == "Pod":
        # Our label holds the uid of the adaptation, and a pod's owner is its Job. JobSets own no pods: theirs belong to
        # the Jobs that they create. Whether that Job is one of ours is found when the pod is read.
        return owner.get("kind") == "Job" or orphan_of({"metadata": metadata}) is not None
    return (
        owner.get("kind") == RESOURCE
        and str(owner.get("apiVersion", "")).startswith(f"{GROUP}/")
        and owner.get("uid") == owner_uid
    )


def _target(pod: Manifest, key: Key) -> Target | None:
    """Return where a running first pod serves its readings; None for any other pod."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels, annotations = metadata["labels"], metadata.get("annotations") or {}
    index = annotations.get(COMPLETION_INDEX, labels.get(COMPLETION_INDEX))
    # A pod of a JobSet has both labels; its run is known by the name of the JobSet.
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
    # Rank 0 alone serves readings, and it runs in the first pod.
    is_running = status.get("phase") == "Running" and not has_ended(pod)
    if not is_running or index != "0" or not (run and host and holder and port):
        return None
    job_uid = str(controller_of(pod).get("uid", ""))
    if not job_uid:
        return None  # an orphan speaks for no run
    return Target(key, str(holder), str(run), str(host), int(port), job_uid)


def version_of(value: object) -> int:
    """Return a resource version as a number; 0 for none."""
    return whole_number(str(value or "")) or 0
