"""Writes a run's identity to its objects and reads it back.

Labels hold all of `RunIdentity`, so the state of a run can be derived from its objects alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import ValidationError

from dapt_contract.run_identity import RunIdentity
from dapt_operator.api import names
from dapt_operator.stage_run import JsonObject, Manifest, Owner, StageRun

ANNOTATION_ACCELERATOR: Final = f"{names.GROUP}/accelerator"
"""Annotation of a Job: the extended resource whose amount counts as accelerators."""
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""Kueue's label of a queued Job or JobSet: the name of its LocalQueue."""


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
