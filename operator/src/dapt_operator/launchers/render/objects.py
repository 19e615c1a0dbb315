"""Renders what all launchers share: work claim, ConfigMap of a run, metadata, and the spec of a Job."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from dapt_contract.envelope import canonical_json
from dapt_operator.api import names
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.launchers.labels import (
    ANNOTATION_ACCELERATOR,
    QUEUE_LABEL,
    adaptation_labels,
    owner_references,
    run_labels,
)
from dapt_operator.launchers.render.environment import Rendezvous, accelerator_resource
from dapt_operator.launchers.render.pod import pod_template
from dapt_operator.stage_run import JsonObject, Manifest, Owner, StageRun, plain

STAGE_FILE_KEY: Final = "stage.json"
PROFILE_KEY: Final = "profile.json"
"""Copy of the profile at the creation of the run, to look up later what its pods were rendered from."""


def object_metadata(owner: Owner, name: str, labels: Mapping[str, str]) -> JsonObject:
    """Return the metadata of an object that belongs to the adaptation and is deleted with it."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": dict(labels),
        "ownerReferences": owner_references(owner),
    }


def gang_metadata(run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> JsonObject:
    """Return the metadata of the object that holds the pods.

    The queue's label is set here and not on the pods, so that the gang is admitted as a whole.
    """
    labels = run_labels(run)
    if run.queue is not None:
        labels[QUEUE_LABEL] = run.queue
    metadata = object_metadata(owner, run.name, labels)
    metadata["annotations"] = {names.ANNOTATION_CONFIG_DIGEST: run.stage_file.config_digest}
    # What a run was created from is read back where the operator stopped before it stored the run.
    if run.generation:
        metadata["annotations"][names.ANNOTATION_GENERATION] = str(run.generation)
    if run.profile_digest:
        metadata["annotations"][names.ANNOTATION_PROFILE_DIGEST] = run.profile_digest
    if run.resources.accelerators_per_node:
        metadata["annotations"][ANNOTATION_ACCELERATOR] = accelerator_resource(profile)
    return metadata


def stage_config_map(run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> tuple[Manifest, str]:
    """Return the ConfigMap with the run's files, and the SHA-256 of stage.json in hexadecimal."""
    stage_json = canonical_json(run.stage_file.model_dump(mode="json"))
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": object_metadata(owner, run.name, run_labels(run)),
        # A tenant can edit the ConfigMaps of the namespace; of this one only a deletion is left, which the digest
        # shows.
        "immutable": True,
        "data": {STAGE_FILE_KEY: stage_json, PROFILE_KEY: canonical_json(profile.to_dict())},
    }
    return manifest, hashlib.sha256(stage_json.encode()).hexdigest()


def job_spec(
    run: StageRun, profile: AdaptationProfileSpec, owner: Owner, stage_sha256: str, rendezvous: Rendezvous
) -> JsonObject:
    """Return the spec of the Job whose pods are the gang.

    A gang has no partial success. With `backoffLimit: 0` the Job fails with its first pod and the Job controller
    deletes the peers; `podReplacementPolicy: Failed` keeps a replacement from overlapping with the pod it replaces.
    """
    spec: JsonObject = {
        "completionMode": "Indexed",
        "completions": run.resources.nodes,
        "parallelism": run.resources.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": pod_template(run, profile, owner, stage_sha256, rendezvous),
    }
    if run.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = run.deadline_seconds
    return spec


def work_claim(profile: AdaptationProfileSpec, owner: Owner) -> tuple[Manifest, ...]:
    """Return the claim of the work volume if the profile has a template for it."""
    if profile.storage.claim_template is None:
        return ()
    name = names.work_claim_name(owner.name, owner.uid)
    return (
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": object_metadata(owner, name, adaptation_labels(owner)),
            "spec": plain(profile.storage.claim_template),
        },
    )
