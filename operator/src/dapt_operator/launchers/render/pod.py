"""The pod of one node of a run: the profile's template, with what dapt owns laid over it.

`api/validation/pod_fields.py` says who owns which field, `api/validation/pod_template.py` what of a template is
refused; this module reads the usable part alone. Every container gets the security context of the restricted
Pod Security standard by default, sidecars too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dapt_contract import pod as contract
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.validation.pod_fields import TRAINER, VOLUME_NAMES
from dapt_operator.api.validation.pod_security import breaches
from dapt_operator.api.validation.pod_template import CONTAINER_LISTS, usable, usable_trainer
from dapt_operator.launchers.labels import run_labels
from dapt_operator.launchers.render.environment import COMPLETION_INDEX as COMPLETION_INDEX
from dapt_operator.launchers.render.environment import ONLINE_KINDS as ONLINE_KINDS
from dapt_operator.launchers.render.environment import SIGNING_KEY as SIGNING_KEY
from dapt_operator.launchers.render.environment import (
    Rendezvous,
    environment_of,
    grace_seconds,
    merged,
    resources_of,
)
from dapt_operator.launchers.render.volumes import mounts_of, volumes_of
from dapt_operator.stage_run import Owner, StageRun, plain

CONTAINER: Final = TRAINER
UNREACHABLE_SECONDS: Final = 30
"""A pod on a node that does not answer is given up after this long."""


def pod_template(
    run: StageRun, profile: AdaptationProfileSpec, owner: Owner, stage_sha256: str, rendezvous: Rendezvous
) -> dict[str, Any]:
    """A PodTemplateSpec; equal for all nodes of the run."""
    template: dict[str, Any] = plain(usable(profile.pod_template or {}))
    given: dict[str, Any] = template["spec"]
    trainer = usable_trainer(given)
    beside = {
        name: [merged(_container_defaults(), item) for item in given.get(name, [])]
        for name in CONTAINER_LISTS
    }
    others = [item for item in beside["containers"] if item["name"] != CONTAINER]
    spec = merged(_pod_defaults(given), {name: value for name, value in given.items() if name not in beside})
    spec |= {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds(profile),
        "containers": [_container(run, profile, owner, stage_sha256, rendezvous, trainer), *others],
        "volumes": volumes_of(run, profile, owner) + _free_volumes(given),
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{state}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": UNREACHABLE_SECONDS,
            }
            for state in ("unreachable", "not-ready")
        ]
        + given.get("tolerations", []),
    }
    if beside["initContainers"]:
        spec["initContainers"] = beside["initContainers"]
    if rendezvous.subdomain is not None:
        spec["subdomain"] = rendezvous.subdomain
    if run.priority_class_name is not None:
        spec["priorityClassName"] = run.priority_class_name
    metadata = merged(template["metadata"], {"labels": run_labels(run)})
    return {"metadata": metadata, "spec": spec}


def lifted_restrictions(profile: AdaptationProfileSpec) -> tuple[str, ...]:
    """One warning where the profile's template goes beyond the restricted standard; else nothing.

    It is the platform team's to decide, and the namespace has to allow it: said before pods are refused.
    """
    given: dict[str, Any] = plain(usable(profile.pod_template or {}))["spec"]
    spec = merged(_pod_defaults(given), given)
    for name in CONTAINER_LISTS:
        spec[name] = [merged(_container_defaults(), item) for item in given.get(name, [])]
    found = breaches(spec)
    if not found:
        return ()
    return (
        f"spec.podTemplate of the profile goes beyond the restricted Pod Security standard ({', '.join(found)}):"
        " its pods start only in namespaces that allow that",
    )


def _pod_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if given.get("hostNetwork"):
        defaults["dnsPolicy"] = (
            "ClusterFirstWithHostNet"  # else the coordinator's name is unknown to the pods
        )
    return defaults


def _container_defaults() -> dict[str, Any]:
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    }


def _container(
    run: StageRun,
    profile: AdaptationProfileSpec,
    owner: Owner,
    stage_sha256: str,
    rendezvous: Rendezvous,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    ours = {
        "name": CONTAINER,
        "image": profile.trainer_image,
        "command": ["python", "-m", "dapt_trainer"],
        "args": [run.kind, "--config", contract.STAGE_FILE, "--sha256", stage_sha256],
        "env": environment_of(run, profile, rendezvous, given),
        "envFrom": given.get("envFrom", []) + [{"secretRef": {"name": name}} for name in run.secret_names],
        "ports": [
            {"name": "coordinator", "containerPort": profile.ports.coordinator},
            {"name": "progress", "containerPort": profile.ports.progress},
        ],
        "resources": resources_of(run, profile, given),
        "terminationMessagePath": contract.TERMINATION_PATH,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts_of(run, profile, owner) + given.get("volumeMounts", []),
    }
    theirs = merged(_container_defaults(), {name: value for name, value in given.items() if name not in ours})
    return theirs | {name: value for name, value in ours.items() if value != []}


def _free_volumes(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [item for item in given.get("volumes", []) if item.get("name") not in VOLUME_NAMES]
