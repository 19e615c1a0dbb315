"""Writes a run's identity to its objects and reads it back.

Labels hold all of `RunIdentity`, so the state of a run can be derived from its objects alone. Anybody may copy a label,
and whoever may edit a Job may remove one. So a Job or JobSet counts as a run only if the adaptation controls it and its
name is the one that its identity gives, and its identity is read from its pods' template, which nobody can change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api import names
from dapt_operator.stage_run import JsonObject, Manifest, OrphanPod, Owner, StageRun

ANNOTATION_ACCELERATOR: Final = f"{names.GROUP}/accelerator"
"""Annotation of a Job: the extended resource whose amount counts as accelerators."""
REPLICATED_JOB: Final = "n"
"""Name of the one Job of our JobSets. Short because a pod is named JOBSET-n-0-INDEX-xxxxx within 63 characters."""
_POD_SUFFIX: Final = re.compile(r"-\d{1,6}(-[a-z0-9]{5})?")
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's label of a queued Job or JobSet: the name of its LocalQueue."""


@dataclass(frozen=True)
class HeldRun:
    """The run whose pods a Job or JobSet holds."""

    identity: RunIdentity
    kind: str
    """Kind of the stage."""


def adaptation_labels(owner: Owner) -> dict[str, str]:
    """Return the labels of every object of an adaptation; also the selector of its Service."""
    return {names.LABEL_NAME: owner.name, names.LABEL_UID: owner.uid}


def run_labels(run: StageRun) -> dict[str, str]:
    """Return the labels of the objects and pods of one run."""
    identity = run.identity
    labels = {
        "app.kubernetes.io/managed-by": "dapt",
        names.LABEL_NAME: identity.name,
        names.LABEL_UID: identity.uid,
        names.LABEL_STAGE: identity.stage,
        names.LABEL_KIND: run.kind,
        names.LABEL_ATTEMPT: str(identity.attempt),
        names.LABEL_TRY: str(identity.try_number),
        names.LABEL_FENCE: str(identity.fence),
        names.LABEL_RUN: identity.key[:16],
    }
    if identity.candidate:
        labels[names.LABEL_CANDIDATE] = identity.candidate
    return labels


def origin_of(manifest: Manifest) -> tuple[str, ...]:
    """Return what a Job or JobSet says of its creation: digests of its configuration and profile, generation."""
    annotations: Mapping[str, str] = (manifest.get("metadata") or {}).get("annotations") or {}
    origins = (names.ANNOTATION_CONFIG_DIGEST, names.ANNOTATION_GENERATION, names.ANNOTATION_PROFILE_DIGEST)
    return tuple(str(annotations.get(name, "")) for name in origins)


def identity_of(manifest: Manifest) -> RunIdentity | None:
    """Return the run that an object belongs to; None for an object that is not one of ours."""
    metadata: Manifest = manifest.get("metadata") or {}
    labels: Mapping[str, str] = metadata.get("labels") or {}
    try:
        return RunIdentity(
            namespace=metadata.get("namespace", ""),
            name=labels[names.LABEL_NAME],
            uid=labels[names.LABEL_UID],
            stage=labels[names.LABEL_STAGE],
            attempt=int(labels[names.LABEL_ATTEMPT]),
            candidate=labels.get(names.LABEL_CANDIDATE),
            try_number=int(labels[names.LABEL_TRY]),
            fence=int(labels[names.LABEL_FENCE]),
        )
    except (KeyError, ValueError, ValidationError):
        return None


def held_run(manifest: Manifest) -> HeldRun | None:
    """Return the run of a Job or JobSet that the operator created; None for any other object."""
    metadata: Manifest = manifest.get("metadata") or {}
    controller = controller_of(manifest)
    for labels in _label_sets(manifest):
        identity = identity_of({"metadata": {"namespace": metadata.get("namespace", ""), "labels": labels}})
        if identity is None or not controls(controller, identity.name, identity.uid):
            continue
        if metadata.get("name") == names.object_name(identity.name, identity.stage, identity.key):
            return HeldRun(identity, str(labels.get(names.LABEL_KIND, identity.stage)))
    return None


def orphan_of(pod: Manifest) -> OrphanPod | None:
    """Return a pod of ours whose Job or JobSet may have been deleted without it; None for any other.

    Nothing owns the pod of such a Job. The Job of such a JobSet stays, has no label of ours, and owns its pods: whether
    the JobSet exists is for the caller to find out. Anybody may copy labels. So the pod's name must be one that the Job
    of its run gave it: with the number of the pod, and with the random suffix that the API server adds.
    """
    metadata: Manifest = pod.get("metadata") or {}
    identity = identity_of(pod)
    if identity is None:
        return None
    holder = names.object_name(identity.name, identity.stage, identity.key)
    child, owner = child_job_name(holder), controller_of(pod)
    has_owner = bool(metadata.get("ownerReferences"))
    if has_owner and (owner.get("kind"), owner.get("name")) != ("Job", child):
        return None
    name = str(metadata.get("name") or "")
    # The longer one first: it begins with the other.
    job = child if has_owner or name.startswith(f"{child}-") else holder
    return OrphanPod(name, identity, holder) if _is_named_by(job, name) else None


def is_named_by_its_job(pod: Manifest) -> bool:
    """Whether a pod has a name that the Job which controls it gives. One that the Job has adopted has another."""
    name = str((pod.get("metadata") or {}).get("name") or "")
    return _is_named_by(str(controller_of(pod).get("name") or ""), name)


def _is_named_by(job: str, pod: str) -> bool:
    return pod.startswith(job) and _POD_SUFFIX.fullmatch(pod.removeprefix(job)) is not None


def child_job_name(jobset: str) -> str:
    """Return the name of the Job that the JobSet controller creates for a JobSet of ours."""
    return f"{jobset}-{REPLICATED_JOB}-0"


def controller_of(manifest: Manifest) -> Manifest:
    """Return the controlling owner reference of an object; empty when no controller owns it."""
    owners = (manifest.get("metadata") or {}).get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})


def controls(controller: Manifest, name: str, uid: str) -> bool:
    """Whether an owner reference names this very DomainAdaptation."""
    return (
        controller.get("kind") == "DomainAdaptation"
        and str(controller.get("apiVersion", "")).startswith(f"{names.GROUP}/")
        and controller.get("name") == name
        and controller.get("uid") == uid
    )


def template_labels(manifest: Manifest) -> Mapping[str, str]:
    """Return the labels of the pods' template of a Job or JobSet; empty when it has none."""
    spec: Manifest = manifest.get("spec") or {}
    if "replicatedJobs" in spec:
        replicated: Manifest = next(iter(spec["replicatedJobs"] or []), {})
        spec = (replicated.get("template") or {}).get("spec") or {}
    labels: Mapping[str, str] = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    return labels


def _label_sets(manifest: Manifest) -> Iterator[Mapping[str, str]]:
    """Yield the labels that may hold the identity, the trustworthy ones first."""
    yield template_labels(manifest)
    yield (manifest.get("metadata") or {}).get("labels") or {}


def owner_references(owner: Owner) -> list[JsonObject]:
    """Return the DomainAdaptation as controlling owner, so that its children are deleted with it.

    `blockOwnerDeletion` is not set. Where the admission plugin OwnerReferencesPermissionEnforcement is on, setting it
    requires the right to change finalizers of adaptations, and no deletion of ours waits for the children.
    """
    return [
        {
            "apiVersion": names.API_VERSION,
            "kind": "DomainAdaptation",
            "name": owner.name,
            "uid": owner.uid,
            "controller": True,
        }
    ]
