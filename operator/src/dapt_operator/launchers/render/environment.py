"""What the trainer's container gets: variables and resources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dapt_contract import pod as contract
from dapt_contract.layout import HUB_CACHE
from dapt_operator.api.quantity import is_quantity, parse_quantity
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.validation.pod_template import is_ours
from dapt_operator.stage_run import StageRun, plain

DEFAULT_GRACE_SECONDS: Final = 120
"""Grace period of a profile that gives none: time to write a checkpoint of a small model."""
DEFAULT_GPU_RESOURCE: Final = "nvidia.com/gpu"
ONLINE_KINDS: Final = ("prepare", "publish")
"""Kinds of stage that reach hubs and object stores; all others run offline."""
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
SIGNING_KEY: Final = "key"
"""Entry of the signing Secret."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a run meet."""

    host: str
    """Of the first pod, as the others resolve it."""
    subdomain: str | None = None
    """What the pods' host names lie below; None where the launcher's controller sets it, or for a single pod."""


ALONE = Rendezvous(host="127.0.0.1")


def grace_seconds(profile: AdaptationProfileSpec) -> int:
    """Seconds between SIGTERM and SIGKILL of a pod."""
    return profile.termination_grace_period_seconds or DEFAULT_GRACE_SECONDS


def accelerator_resource(profile: AdaptationProfileSpec) -> str:
    """The extended resource that a pod with accelerators asks for."""
    return profile.accelerator.resource or DEFAULT_GPU_RESOURCE


def uses_model_cache(run: StageRun, profile: AdaptationProfileSpec) -> bool:
    """Whether the run downloads a base model into the profile's cache, or finds it there."""
    return run.kind == "prepare" and profile.model_cache is not None


def environment_of(
    run: StageRun, profile: AdaptationProfileSpec, rendezvous: Rendezvous, given: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The trainer's variables: the contract's, then what the template adds. It may change OMP_NUM_THREADS alone."""
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
    if resources.accelerators_per_node and profile.accelerator.peak_tflops is not None:
        values[contract.PEAK_TFLOPS] = f"{profile.accelerator.peak_tflops:g}"
    if uses_model_cache(run, profile):
        values[contract.MODEL_CACHE] = contract.MODEL_CACHE_MOUNT
    if run.signs_checkpoints:
        values[contract.SIGNING_KEY_FILE] = f"{contract.SIGNING_KEY_MOUNT}/{SIGNING_KEY}"
    cpu = resources_of(run, profile, given)["requests"].get("cpu")
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


def resources_of(run: StageRun, profile: AdaptationProfileSpec, given: Mapping[str, Any]) -> dict[str, Any]:
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
    return merged(_further(given, accelerator_resource(profile)), {"requests": requests, "limits": limits})


def _further(given: Mapping[str, Any], accelerator: str) -> dict[str, Any]:
    """What the template asks for besides; accelerators are the run's alone, since prepare needs none."""
    found: dict[str, Any] = dict(given.get("resources") or {})
    for name in ("requests", "limits"):
        amounts = found.pop(name, None)
        if isinstance(amounts, Mapping):
            found[name] = {
                resource: amount
                for resource, amount in amounts.items()
                if resource != accelerator and is_quantity(amount)
            }
    return found


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
