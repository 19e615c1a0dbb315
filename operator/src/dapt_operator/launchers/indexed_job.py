"""Indexed Jobs: one pod a node, started together, failed together.

A gang has no partial success: `backoffLimit: 0` fails the Job with its first pod and the Job controller deletes the
peers, `podReplacementPolicy: Failed` keeps a replacement from overlapping. A new try is a new Job with its own name.
Rendezvous is static: node rank = completion index, the coordinator is the first pod's stable host name below the
adaptation's headless Service (only runs of several nodes have one).
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from dapt_contract.envelope import canonical_json
from dapt_operator.api import names
from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.run import Children, Manifest, Owner, RunState, StageRun, plain
from dapt_operator.launchers.labels import (
    ANNOTATION_ACCELERATOR,
    adaptation_labels,
    owner_references,
    run_labels,
)
from dapt_operator.launchers.pod import accelerator_resource, pod_template
from dapt_operator.launchers.pods import parse_time
from dapt_operator.launchers.states import Gang, fold_all, true_conditions

STAGE_FILE_KEY = "stage.json"


def render(run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> tuple[Manifest, ...]:
    """All objects of one run, in the order of their creation; equal input gives equal output."""
    stage_json = canonical_json(run.stage_file.model_dump(mode="json"))
    digest = hashlib.sha256(stage_json.encode()).hexdigest()
    return (_stage_config_map(run, owner, stage_json), _job(run, profile, owner, digest))


def shared(profile: AdaptationProfileSpec, owner: Owner, nodes: int) -> tuple[Manifest, ...]:
    """The work volume where the profile has a template for it, and the headless Service of gangs of several pods."""
    objects: list[Manifest] = []
    if profile.storage.claim_template is not None:
        objects.append(_claim(profile.storage.claim_template, owner))
    if nodes > 1:
        objects.append(_service(profile, owner))
    return tuple(objects)


def states(children: Children, now: datetime) -> tuple[RunState, ...]:
    """The state of every run whose Job is there, oldest fence first."""
    return fold_all(children, now, _read)


def _read(manifest: Manifest) -> Gang | None:
    if manifest.get("kind", "Job") != "Job":
        return None
    spec, conditions = manifest.get("spec") or {}, true_conditions(manifest)
    status = manifest.get("status") or {}
    return Gang(
        kind="Job",
        completions=int(spec.get("completions") or 1),
        suspended=bool(spec.get("suspend")),
        pod_spec=(spec.get("template") or {}).get("spec") or {},
        complete=conditions.get("Complete"),
        failed=conditions.get("Failed"),
        started=parse_time(status.get("startTime")),
    )


def _metadata(owner: Owner, name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels,
        "ownerReferences": owner_references(owner),
    }


def _claim(template: Manifest, owner: Owner) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(owner, names.work_claim_name(owner.name, owner.uid), adaptation_labels(owner)),
        "spec": plain(template),
    }


def _service(profile: AdaptationProfileSpec, owner: Owner) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(owner, names.service_name(owner.name, owner.uid), adaptation_labels(owner)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # ranks look for each other before any pod is ready
            "selector": adaptation_labels(owner),
            "ports": [
                {"name": "coordinator", "port": profile.ports.coordinator},
                {"name": "progress", "port": profile.ports.progress},
            ],
        },
    }


def _stage_config_map(run: StageRun, owner: Owner, stage_json: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(owner, run.name, run_labels(run)),
        "immutable": True,
        "data": {STAGE_FILE_KEY: stage_json},
    }


def _job(run: StageRun, profile: AdaptationProfileSpec, owner: Owner, digest: str) -> Manifest:
    metadata = _metadata(owner, run.name, run_labels(run))
    metadata["annotations"] = {names.ANNOTATION_CONFIG_DIGEST: run.stage_file.config_digest}
    if run.resources.accelerators_per_node:
        metadata["annotations"][ANNOTATION_ACCELERATOR] = accelerator_resource(profile)
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": run.resources.nodes,
        "parallelism": run.resources.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "template": pod_template(run, profile, owner, digest),
    }
    if run.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = run.deadline_seconds
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
