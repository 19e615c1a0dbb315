"""Renders the environment variables and the resources of the trainer's container."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dapt_contract.layout import HUB_CACHE
from dapt_contract.pod import environment as contract
from dapt_operator.api.quantity import is_quantity, parse_quantity
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.validation.pod_template import is_reserved_variable
from dapt_operator.stage_run import JsonObject, Manifest, StageRun, plain

DEFAULT_GRACE_SECONDS: Final = 120
"""Grace period of a profile that sets none: time to write a checkpoint of a small model."""
DEFAULT_GPU_RESOURCE: Final = "nvidia.com/gpu"
"""Extended resource of a profile that names none."""
ONLINE_KINDS: Final = ("destination", "prepare", "tuning_data", "publish")
"""Kinds of stage that reach hubs and object stores; all others run offline."""
SIGNING_KEY: Final = "key"
"""Entry of the signing Secret that holds the key."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a run find each other."""

    host: str
    """Host name of the first pod, as the others resolve it."""
    subdomain: str | None = None
    """Subdomain of the pods' host names; None for a single pod, or where the launcher's controller sets it."""


SINGLE_POD: Final = Rendezvous(host="127.0.0.1")


def grace_seconds(profile: AdaptationProfileSpec) -> int:
    """Return the seconds between SIGTERM and SIGKILL of a pod."""
    return profile.termination_grace_period_seconds or DEFAULT_GRACE_SECONDS


def accelerator_resource(profile: AdaptationProfileSpec) -> str:
    """Return the extended resource that a pod with accelerators requests."""
    return profile.accelerator.resource or DEFAULT_GPU_RESOURCE


def uses_model_cache(run: StageRun, profile: AdaptationProfileSpec) -> bool:
    """Whether the run reads base models from the profile's cache and downloads them into it."""
    return run.kind == "prepare" and profile.model_cache is not None


def environment_of(
    run: StageRun, profile: AdaptationProfileSpec, rendezvous: Rendezvous, given: Manifest
) -> list[JsonObject]:
    """Return the trainer's variables: the contract's, then those of the template.

    Of the contract's variables the template may replace only OMP_NUM_THREADS.

    Args:
        run: the run that is rendered.
        profile: its profile.
        rendezvous: where the ranks find each other.
        given: the trainer's container in the profile's template.
    """
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
        # The root file system is read-only: what libraries write goes to the scratch volume.
        "TMPDIR": contract.SCRATCH_MOUNT,
        "XDG_CACHE_HOME": f"{contract.SCRATCH_MOUNT}/cache",
    }
    if run.kind not in ONLINE_KINDS:
        values |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        # Where prepare has cached the data sets that an offline stage reads.
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
    ours: list[JsonObject] = [{"name": name, "value": value} for name, value in values.items()]
    # One template serves all pods, so the rank is read from the annotation that the Job controller adds to each.
    ours.append(
        {
            "name": contract.NODE_RANK,
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{contract.COMPLETION_INDEX}']"}},
        }
    )
    theirs = [item for item in given.get("env", []) if not is_reserved_variable(str(item.get("name")))]
    replaced = {item.get("name") for item in theirs}
    return [item for item in ours if item["name"] not in replaced] + theirs


def resources_of(run: StageRun, profile: AdaptationProfileSpec, given: Manifest) -> JsonObject:
    """Return requests and limits of the trainer's container.

    Requests equal limits for memory and accelerators. CPU has a request and no limit, so that it may burst.
    """
    desired = run.resources
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if desired.cpu:
        requests["cpu"] = desired.cpu
    if desired.memory:
        requests["memory"] = limits["memory"] = desired.memory
    if desired.accelerators_per_node:
        resource = accelerator_resource(profile)
        requests[resource] = limits[resource] = str(desired.accelerators_per_node)
    template_resources = _template_resources(given, accelerator_resource(profile))
    return merged(template_resources, {"requests": requests, "limits": limits})


def _template_resources(given: Manifest, accelerator: str) -> JsonObject:
    """Return the template's resources without accelerators: the run alone sets those, since prepare needs none."""
    resources: JsonObject = dict(given.get("resources") or {})
    for name in ("requests", "limits"):
        amounts = resources.pop(name, None)
        if isinstance(amounts, Mapping):
            resources[name] = {
                resource: amount
                for resource, amount in amounts.items()
                if resource != accelerator and is_quantity(amount)
            }
    return resources


def merged(base: Manifest, over: Manifest) -> JsonObject:
    """Return `base` overridden by `over`: maps are merged, everything else is replaced."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        result[name] = (
            merged(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else plain(value)
        )
    return result
