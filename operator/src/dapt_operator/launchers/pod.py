"""The pod of one node of a run: the profile's template, with what dapt owns laid over it.

Who owns which field stands in `api/pod_fields.py`, and what of a template is refused in `api/pod_template.py`; here its
usable part alone is read. Every container gets the security context of the restricted Pod Security standard by
default, those beside the trainer too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dapt_contract import pod as contract
from dapt_contract.layout import HUB_CACHE
from dapt_operator.api.names import signing_secret_name, work_claim_name
from dapt_operator.api.pod_fields import TRAINER, VOLUME_NAMES
from dapt_operator.api.pod_security import breaches
from dapt_operator.api.pod_template import CONTAINER_LISTS, is_ours, usable, usable_trainer
from dapt_operator.api.profile import AdaptationProfileSpec
from dapt_operator.api.run import Owner, StageRun, plain
from dapt_operator.launchers.labels import run_labels
from dapt_operator.launchers.quantity import parse_quantity

CONTAINER = TRAINER
DEFAULT_GRACE_SECONDS = 120
"""Grace period of a profile that gives none: time to write a checkpoint of a small model."""
DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"
UNREACHABLE_SECONDS = 30
"""A pod on a node that does not answer is given up after this long."""
ONLINE_KINDS = ("prepare", "publish")
"""Kinds of stage that reach hubs and object stores; all others run offline."""
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
SIGNING_KEY = "key"
"""Entry of the signing Secret."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a run meet."""

    host: str
    """Of the first pod, as the others resolve it."""
    subdomain: str | None = None
    """What the pods' host names lie below; None where the launcher's controller sets it, or for a single pod."""


ALONE = Rendezvous(host="127.0.0.1")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`: maps are merged, everything else is replaced."""
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        result[name] = (
            merged(below, value)
            if isinstance(value, Mapping) and isinstance(below, Mapping)
            else plain(value)
        )
    return result


def grace_seconds(profile: AdaptationProfileSpec) -> int:
    """Seconds between SIGTERM and SIGKILL of a pod."""
    return profile.termination_grace_period_seconds or DEFAULT_GRACE_SECONDS


def accelerator_resource(profile: AdaptationProfileSpec) -> str:
    """The extended resource that a pod with accelerators asks for."""
    return profile.accelerator.resource or DEFAULT_GPU_RESOURCE


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
        "volumes": _volumes(run, profile, owner) + _free_volumes(given),
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
        "env": _environment(run, profile, rendezvous, given),
        "envFrom": given.get("envFrom", []) + [{"secretRef": {"name": name}} for name in run.secret_names],
        "ports": [
            {"name": "coordinator", "containerPort": profile.ports.coordinator},
            {"name": "progress", "containerPort": profile.ports.progress},
        ],
        "resources": _resources(run, profile, given),
        "terminationMessagePath": contract.TERMINATION_PATH,
        "terminationMessagePolicy": "File",
        "volumeMounts": _mounts(run, profile, owner) + given.get("volumeMounts", []),
    }
    return merged(
        merged(_container_defaults(), given), {name: value for name, value in ours.items() if value != []}
    )


def _free_volumes(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [item for item in given.get("volumes", []) if item.get("name") not in VOLUME_NAMES]


def _environment(
    run: StageRun, profile: AdaptationProfileSpec, rendezvous: Rendezvous, given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    resources = run.resources
    values: dict[str, str] = {
        contract.WORK_DIR: contract.WORK_MOUNT,
        contract.SCRATCH_DIR: contract.SCRATCH_MOUNT,
        contract.TERMINATION_LOG: contract.TERMINATION_PATH,
        contract.PROGRESS_PORT: str(profile.ports.progress),
        contract.GRACE_SECONDS: str(grace_seconds(profile)),
        contract.STARTUP_TIMEOUT_SECONDS: str(profile.startup_timeout_seconds),
        contract.ACCELERATOR: "gpu" if resources.accelerators_per_node else "cpu",
        contract.NODES: str(resources.nodes),
        contract.PROCESSES_PER_NODE: str(resources.processes_per_node),
        contract.COORDINATOR_HOST: rendezvous.host,
        contract.COORDINATOR_PORT: str(profile.ports.coordinator),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": contract.SCRATCH_MOUNT,
        "XDG_CACHE_HOME": f"{contract.SCRATCH_MOUNT}/cache",
    }
    if run.kind not in ONLINE_KINDS:
        values |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        values["HF_HOME"] = f"{contract.WORK_MOUNT}/{HUB_CACHE}"
    if run.signs_checkpoints:
        values[contract.SIGNING_KEY_FILE] = f"{contract.SIGNING_KEY_MOUNT}/{SIGNING_KEY}"
    cpu = _resources(run, profile, given).get("requests", {}).get("cpu")
    if cpu is not None:
        threads = math.floor(parse_quantity(str(cpu)) / resources.processes_per_node)
        values["OMP_NUM_THREADS"] = str(max(1, threads))
    ours: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
    ours.append(
        {
            "name": contract.NODE_RANK,
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{COMPLETION_INDEX}']"}},
        }
    )
    theirs = [item for item in given.get("env", []) if not is_ours(str(item.get("name")))]
    replaced = {item.get("name") for item in theirs}
    return [item for item in ours if item["name"] not in replaced] + theirs


def _resources(run: StageRun, profile: AdaptationProfileSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Requests equal limits for memory and accelerators; CPU has a request and no limit, so that it may burst."""
    wanted = run.resources
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if wanted.cpu:
        requests["cpu"] = wanted.cpu
    if wanted.memory:
        requests["memory"] = limits["memory"] = wanted.memory
    if wanted.accelerators_per_node:
        resource = accelerator_resource(profile)
        requests[resource] = limits[resource] = str(wanted.accelerators_per_node)
    theirs = {
        name: value
        for name, value in (given.get("resources") or {}).items()
        if isinstance(value, Mapping) or name not in ("requests", "limits")
    }
    return merged(theirs, {"requests": requests, "limits": limits})


def _mounts(run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> list[dict[str, Any]]:
    work: dict[str, Any] = {"name": "work", "mountPath": contract.WORK_MOUNT}
    if profile.storage.existing_claim:
        # A claim that several adaptations share: each keeps to its own folder.
        work["subPath"] = work_claim_name(owner.name, owner.uid)
    mounts: list[dict[str, Any]] = [
        work,
        {"name": "scratch", "mountPath": contract.SCRATCH_MOUNT},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        {"name": "stage", "mountPath": contract.STAGE_FILE.rpartition("/")[0], "readOnly": True},
    ]
    if run.signs_checkpoints:
        mounts.append({"name": "signing", "mountPath": contract.SIGNING_KEY_MOUNT, "readOnly": True})
    for number, claim in enumerate(run.claims):
        mount: dict[str, Any] = {"name": f"claim-{number}", "mountPath": f"{contract.CLAIMS_MOUNT}/{claim}"}
        mounts.append(mount | ({"readOnly": True} if _only_reads(run) else {}))
    return mounts


def _volumes(run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> list[dict[str, Any]]:
    claim = profile.storage.existing_claim or work_claim_name(owner.name, owner.uid)
    volumes: list[dict[str, Any]] = [
        {"name": "work", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "scratch", "emptyDir": {}},
        # Kubernetes gives 64 MB, too little for data loaders and for NCCL.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        {"name": "stage", "configMap": {"name": run.name}},
    ]
    if run.signs_checkpoints:
        secret = signing_secret_name(owner.name, owner.uid)
        volumes.append({"name": "signing", "secret": {"secretName": secret, "defaultMode": 0o440}})
    for number, name in enumerate(run.claims):
        source: dict[str, Any] = {"claimName": name}
        if _only_reads(run) and name != claim:
            source["readOnly"] = True  # then the kubelet changes no owner of the files either
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
    return volumes


def _only_reads(run: StageRun) -> bool:
    """Whether the run's claims hold sources; publish writes to its own."""
    return run.kind != "publish"
