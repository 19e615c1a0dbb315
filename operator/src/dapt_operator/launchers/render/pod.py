"""Renders the pod of one node of a run: the profile's template, overridden by the fields that dapt owns.

`api/validation/pod_fields.py` defines who owns which field, `api/validation/pod_template.py` which parts of a template
are refused; this module reads the usable part only. Every container gets the security context of the restricted
Pod Security standard by default, sidecars too.
"""

from __future__ import annotations

from typing import Final

from dapt_contract.pod import environment as contract
from dapt_operator.api.json_values import merged
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.validation.pod_defaults import container_defaults, given_containers, pod_defaults
from dapt_operator.api.validation.pod_fields import TRAINER, VOLUME_NAMES
from dapt_operator.api.validation.pod_template import usable, usable_trainer
from dapt_operator.launchers.labels import run_labels
from dapt_operator.launchers.render.credentials import required_secrets
from dapt_operator.launchers.render.environment import (
    Rendezvous,
    environment_of,
    grace_seconds,
    resources_of,
    scratch_limit,
)
from dapt_operator.launchers.render.volumes import mounts_of, volumes_of
from dapt_operator.stage_run import JsonObject, Manifest, Owner, StageRun, plain

CONTAINER: Final = TRAINER
KEEP_ON_NODE: Final = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Annotations by which autoscalers leave the node alone: one evicted pod costs all ranks the steps since the last
checkpoint. A profile's template may say otherwise."""


def pod_template(
    run: StageRun, profile: AdaptationProfileSpec, owner: Owner, stage_sha256: str, rendezvous: Rendezvous
) -> JsonObject:
    """Return the PodTemplateSpec of a run; it is equal for all its nodes."""
    template: JsonObject = plain(usable(profile.pod_template or {}))
    given: JsonObject = template["spec"]
    trainer = usable_trainer(given)
    containers = given_containers(given)
    sidecars = [item for item in containers["containers"] if item["name"] != CONTAINER]
    spec = merged(
        pod_defaults(given, profile),
        {name: value for name, value in given.items() if name not in containers},
    )
    spec |= {
        # A gang restarts as a whole, as a new try: a container that came back alone would find no peers to join.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds(run, profile),
        "containers": [_container(run, profile, owner, stage_sha256, rendezvous, trainer), *sidecars],
        "volumes": volumes_of(run, profile, owner, scratch_limit(run, trainer)) + _template_volumes(given),
        "tolerations": _lost_node_tolerations(profile) + given.get("tolerations", []),
    }
    if containers["initContainers"]:
        spec["initContainers"] = containers["initContainers"]
    if rendezvous.subdomain is not None:
        spec["subdomain"] = rendezvous.subdomain
    if run.priority_class_name is not None:
        spec["priorityClassName"] = run.priority_class_name
    metadata = merged({"annotations": KEEP_ON_NODE}, template["metadata"])
    metadata = merged(metadata, {"labels": run_labels(run)})
    return {"metadata": metadata, "spec": spec}


def _container(
    run: StageRun,
    profile: AdaptationProfileSpec,
    owner: Owner,
    stage_sha256: str,
    rendezvous: Rendezvous,
    given: Manifest,
) -> JsonObject:
    ours = {
        "name": CONTAINER,
        "image": profile.trainer_image,
        "command": ["python", "-m", "dapt_trainer"],
        "args": [run.kind, "--config", contract.STAGE_FILE, "--sha256", stage_sha256],
        "env": environment_of(run, profile, rendezvous, given),
        "envFrom": given.get("envFrom", []) + required_secrets(run),
        "ports": [
            {"name": "coordinator", "containerPort": profile.ports.coordinator},
            {"name": "progress", "containerPort": profile.ports.progress},
        ],
        "resources": resources_of(run, profile, given),
        "terminationMessagePath": contract.TERMINATION_PATH,
        # The other policy puts the end of the log in place of a lost message, and that is none.
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts_of(run, profile, owner) + given.get("volumeMounts", []),
    }
    rest_of_template = {name: value for name, value in given.items() if name not in ours}
    return merged(container_defaults(), rest_of_template) | {
        name: value for name, value in ours.items() if value != []
    }


def _lost_node_tolerations(profile: AdaptationProfileSpec) -> list[JsonObject]:
    """Return how long the pods stay on a node that is lost.

    Kubernetes' own default is 300 s, all of which a gang would wait for the pod on a node that is gone.
    """
    seconds = {
        "unreachable": profile.node_loss.unreachable_seconds,
        "not-ready": profile.node_loss.not_ready_seconds,
    }
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": tolerated,
        }
        for state, tolerated in seconds.items()
    ]


def _template_volumes(given: Manifest) -> list[JsonObject]:
    return [item for item in given.get("volumes", []) if item.get("name") not in VOLUME_NAMES]
