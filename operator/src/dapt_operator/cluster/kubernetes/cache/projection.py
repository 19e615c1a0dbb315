"""Reduces an object to what launchers, planner and this adapter read.

Thousands of Jobs and pods are in memory at once, and most of each is its pod's specification, managed fields and
volumes. `launchers/observe/run_states.py` lists what launchers read; a test compares the states of whole and of
reduced objects.
"""

from __future__ import annotations

from typing import Final

from dapt_contract.pod.environment import COMPLETION_INDEX
from dapt_operator.api.names import (
    ANNOTATION_CONFIG_DIGEST,
    ANNOTATION_GENERATION,
    ANNOTATION_PROFILE_DIGEST,
    GROUP,
)
from dapt_operator.api.v1alpha1.profile import DEFAULT_PROFILE_ANNOTATION
from dapt_operator.launchers.labels import ANNOTATION_ACCELERATOR
from dapt_operator.stage_run import JsonObject, Manifest

_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_OWNER: Final = ("apiVersion", "kind", "name", "uid", "controller")
_ANNOTATIONS: Final = (
    ANNOTATION_CONFIG_DIGEST,
    ANNOTATION_GENERATION,
    ANNOTATION_PROFILE_DIGEST,
    ANNOTATION_ACCELERATOR,
    DEFAULT_PROFILE_ANNOTATION,
    COMPLETION_INDEX,
)
"""Those that are read. Others may hold 256 KiB in each object, and a tenant may write them."""
_CONDITION: Final = ("type", "status", "reason", "message", "lastTransitionTime", "observedGeneration")
_READY, _EVICTED = "Ready", "DisruptionTarget"
_IGNORED_CONDITIONS: Final = frozenset(
    {"Initialized", _READY, "ContainersReady", "PodReadyToStartContainers"}
)


def project(body: Manifest) -> JsonObject:
    """Return the part of an object that is kept.

    Children lose their resource version, so that a change of it alone is no change.
    """
    kind = str(body.get("kind"))
    project_content = _PROJECTIONS.get(kind, _spec_and_status)
    names = _METADATA if kind in _PROJECTIONS else (*_METADATA, "resourceVersion", "generation")
    metadata = _metadata(body, names)
    return {"apiVersion": body.get("apiVersion"), "kind": kind, "metadata": metadata} | project_content(body)


def _metadata(body: Manifest, names: tuple[str, ...]) -> JsonObject:
    given = body.get("metadata") or {}
    kept = _only(given, names)
    if "annotations" in kept:
        kept["annotations"] = _only(kept["annotations"] or {}, _ANNOTATIONS)
    owners = [_only(owner, _OWNER) for owner in given.get("ownerReferences") or []]
    return kept | ({"ownerReferences": owners} if owners else {})


def _spec_and_status(body: Manifest) -> JsonObject:
    return _only(body, ("spec", "status"))


def _job(body: Manifest) -> JsonObject:
    return {"spec": _job_spec(body.get("spec") or {}), "status": _job_status(body)}


def _jobset(body: Manifest) -> JsonObject:
    spec = body.get("spec") or {}
    replicated = [
        _only(item, ("name", "replicas"))
        | {"template": {"spec": _job_spec((item.get("template") or {}).get("spec") or {})}}
        for item in spec.get("replicatedJobs") or []
    ]
    return {"spec": _only(spec, ("suspend",)) | {"replicatedJobs": replicated}, "status": _job_status(body)}


def _job_spec(spec: Manifest) -> JsonObject:
    pod = (spec.get("template") or {}).get("spec") or {}
    containers = [
        _only(item, ("name", "args"))
        | {"resources": _only(item.get("resources") or {}, ("limits",)), "ports": _progress_port(item)}
        for item in pod.get("containers") or []
    ]
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    # A run's identity: nobody can change these labels, and anybody who may edit a Job can change the Job's own.
    kept = {name: value for name, value in labels.items() if name.startswith(f"{GROUP}/")}
    return _only(spec, ("completions", "parallelism", "suspend")) | {
        "template": {"metadata": {"labels": kept}, "spec": {"containers": containers}}
    }


def _job_status(body: Manifest) -> JsonObject:
    status = body.get("status") or {}
    return _only(status, ("startTime", "completionTime")) | _conditions(status)


def _pod(body: Manifest) -> JsonObject:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    containers = [
        {"name": item.get("name"), "ports": _progress_port(item)} for item in spec.get("containers") or []
    ]
    init_states = _containers(
        status.get("initContainerStatuses") or [], ("name", "image", "started", "restartCount")
    )
    return {
        "spec": _only(spec, ("nodeName",)) | {"containers": [item for item in containers if item["ports"]]},
        "status": _only(status, ("phase", "reason", "message", "podIP"))
        | _conditions(status)
        | ({"initContainerStatuses": init_states} if init_states else {})
        | {"containerStatuses": _containers(status.get("containerStatuses") or [], ("name", "image"))},
    }


def _containers(statuses: list[Manifest], names: tuple[str, ...]) -> list[JsonObject]:
    return [_only(item, names) | {"state": _state(item.get("state") or {})} for item in statuses]


def _state(state: Manifest) -> JsonObject:
    return {
        state_name: {name: value for name, value in (details or {}).items() if name != "containerID"}
        for state_name, details in state.items()
    }


def _progress_port(container: Manifest) -> list[JsonObject]:
    ports = container.get("ports") or []
    return [_only(port, ("name", "containerPort")) for port in ports if port.get("name") == "progress"]


def _conditions(status: Manifest) -> JsonObject:
    given = status.get("conditions") or []
    # Of an evicted pod it says whether the node that should stop it is lost.
    is_evicted = any(item.get("type") == _EVICTED for item in given)
    conditions = [
        _only(item, _CONDITION)
        for item in given
        # They change several times while a pod starts and no decision reads them: kept, each change would cause a
        # reconcile.
        if item.get("type") not in _IGNORED_CONDITIONS or (is_evicted and item.get("type") == _READY)
    ]
    return {"conditions": conditions} if conditions else {}


_PROJECTIONS: Final = {"Job": _job, "JobSet": _jobset, "Pod": _pod}


def _only(value: Manifest, names: tuple[str, ...]) -> JsonObject:
    return {name: value[name] for name in names if name in value}
