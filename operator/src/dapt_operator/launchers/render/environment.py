"""Renders the environment variables and the resources of the trainer's container."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dapt_contract.layout import HUB_CACHE
from dapt_contract.pod import environment as contract
from dapt_contract.pod.preflight import PreflightBounds
from dapt_operator.api.json_values import merged
from dapt_operator.api.names import signing_secret_name
from dapt_operator.api.quantity import is_quantity, parse_quantity
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec, ProfilePreflight
from dapt_operator.api.validation.pod_template import is_reserved_variable
from dapt_operator.launchers.render.credentials import credential_variables
from dapt_operator.stage_run import JsonObject, Manifest, StageRun

LEAST_GRACE_SECONDS: Final = 30
"""Grace period of a stage that writes no checkpoint: its processes end and its message is written."""
LEAST_TRAINING_GRACE_SECONDS: Final = 60
"""The same of one that does, beside what is estimated: the step that has begun may be a slow one."""
LARGEST_GRACE_SECONDS: Final = 1800
STOP_MARGIN: Final = 1.5
"""The estimate of a save is that of a volume without other load."""
DEFAULT_GPU_RESOURCE: Final = "nvidia.com/gpu"
"""Extended resource of a profile that names none."""
ONLINE_KINDS: Final = ("destination", "prepare", "tuning_data", "publish")
"""Kinds of stage that reach hubs and object stores; all others run offline."""
DEFAULT_MEMORY: Final = {
    "prepare": ("2Gi", "32Gi"),
    "tuning_data": ("2Gi", "32Gi"),
    "destination": ("1Gi", "16Gi"),
    "publish": ("1Gi", "16Gi"),
}
"""Request and limit of a stage's memory where neither the adaptation nor the template sets any."""
EPHEMERAL_STORAGE: Final = "ephemeral-storage"
EPHEMERAL_MIB: Final = 1024
EPHEMERAL_MIB_A_PROCESS: Final = 256
"""What a pod writes to its node at least: logs, compiled kernels, files of tasks."""
SCRATCH_GIB: Final = 4
SCRATCH_GIB_A_PROCESS: Final = 1
SCRATCH_GIB_ONLINE: Final = 16
"""Parts of the size limit of the scratch volume; see `scratch_limit`."""
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


def grace_seconds(run: StageRun, profile: AdaptationProfileSpec) -> int:
    """Return the seconds between SIGTERM and SIGKILL of a pod: the profile's, else by the estimated time of a save.

    Long enough for the checkpoint, since a stop then costs no step; a drained node waits for so long.
    """
    if profile.termination_grace_period_seconds is not None:
        return profile.termination_grace_period_seconds
    if run.stop_seconds is None:
        return LEAST_GRACE_SECONDS
    seconds = LEAST_TRAINING_GRACE_SECONDS + STOP_MARGIN * run.stop_seconds
    return min(10 * math.ceil(seconds / 10), LARGEST_GRACE_SECONDS)


def accelerator_resource(profile: AdaptationProfileSpec) -> str:
    """Return the extended resource that a pod with accelerators requests."""
    return profile.accelerator.resource or DEFAULT_GPU_RESOURCE


def uses_model_cache(run: StageRun, profile: AdaptationProfileSpec) -> bool:
    """Whether the run reads base models from the profile's cache and downloads them into it."""
    return run.kind == "prepare" and profile.model_cache is not None


def preflight_bounds(preflight: ProfilePreflight) -> PreflightBounds:
    """Return the bounds of a profile as the trainer reads them."""
    return PreflightBounds.model_validate(preflight.model_dump())


def environment_of(
    run: StageRun, profile: AdaptationProfileSpec, rendezvous: Rendezvous, given: Manifest
) -> list[JsonObject]:
    """Return the trainer's variables: the contract's, the credentials, then those of the template.

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
        contract.GRACE_SECONDS: str(grace_seconds(run, profile)),
        contract.STARTUP_TIMEOUT_SECONDS: str(profile.startup_timeout_seconds),
        contract.ACCELERATOR: "gpu" if resources.accelerators_per_node else "cpu",
        contract.NODES: str(resources.nodes),
        contract.PROCESSES_PER_NODE: str(resources.processes_per_node),
        contract.COORDINATOR_HOST: rendezvous.host,
        contract.COORDINATOR_PORT: str(profile.ports.coordinator),
        "PYTHONUNBUFFERED": "1",
        # No process imports a file that happens to lie in its working folder.
        "PYTHONSAFEPATH": "1",
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
    if profile.volume_bytes_per_second is not None:
        values[contract.VOLUME_BYTES_PER_SECOND] = str(profile.volume_bytes_per_second)
    if profile.preflight is not None:
        values[contract.PREFLIGHT] = preflight_bounds(profile.preflight).model_dump_json(
            exclude_defaults=True
        )
    if uses_model_cache(run, profile):
        values[contract.MODEL_CACHE] = contract.MODEL_CACHE_MOUNT
    if run.needs_signing_key:
        values[contract.SIGNING_KEY_FILE] = f"{contract.SIGNING_KEY_MOUNT}/{SIGNING_KEY}"
        if run.key_digests:
            values[contract.SIGNING_KEY_DIGESTS] = ",".join(run.key_digests)
            values[contract.SIGNING_SECRET] = signing_secret_name(run.identity.name, run.identity.uid)
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
    # For messages: pods of a failed run are deleted, and with them which node they were on.
    ours.append({"name": contract.NODE_NAME, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
    theirs = [item for item in given.get("env", []) if not is_reserved_variable(str(item.get("name")))]
    replaced = {item.get("name") for item in theirs}
    kept = [item for item in ours if item["name"] not in replaced]
    return kept + credential_variables(run, theirs) + theirs


def resources_of(run: StageRun, profile: AdaptationProfileSpec, given: Manifest) -> JsonObject:
    """Return requests and limits of the trainer's container.

    Requests equal limits for memory and accelerators; `DEFAULT_MEMORY` is what the stages with network get otherwise.
    CPU has a request and no limit, so that it may burst. Ephemeral storage is requested as far as the template does
    not, and not in a queue: most queues have no quota for it, and Kueue admits nothing that asks for a resource which
    its queue does not know.
    """
    desired = run.resources
    requests: dict[str, str] = {}
    if run.queue is None and given_ephemeral_storage(given) is None:
        amount = EPHEMERAL_MIB + EPHEMERAL_MIB_A_PROCESS * desired.processes_per_node
        requests[EPHEMERAL_STORAGE] = f"{amount}Mi"
    limits: dict[str, str] = {}
    if desired.cpu:
        requests["cpu"] = desired.cpu
    if desired.memory:
        requests["memory"] = limits["memory"] = desired.memory
    if desired.accelerators_per_node:
        resource = accelerator_resource(profile)
        requests[resource] = limits[resource] = str(desired.accelerators_per_node)
    template_resources = _template_resources(given, accelerator_resource(profile))
    return _with_memory(run, merged(template_resources, {"requests": requests, "limits": limits}))


def _with_memory(run: StageRun, resources: JsonObject) -> JsonObject:
    """Return the resources with the default memory of a stage that has network, as far as nothing else sets any.

    These stages read what others have written, so a limit keeps a hostile file from taking the node's memory. The
    request is smaller: absent, Kubernetes would request the whole limit. A queue may have no quota for memory.
    """
    if run.kind not in DEFAULT_MEMORY or run.queue is not None or "memory" in resources["limits"]:
        return resources
    request, limit = DEFAULT_MEMORY[run.kind]
    request = str(resources["requests"].get("memory", request))
    if is_quantity(request) and parse_quantity(request) > parse_quantity(limit):
        limit = request
    amounts = {"requests": {"memory": request}, "limits": {"memory": limit}}
    return merged(resources, amounts)


def scratch_limit(run: StageRun, given: Manifest) -> str:
    """Return the size limit of the scratch volume: the template's ephemeral storage, else what the stage may need.

    A pod that writes more is evicted, so it is far above what is written: kernels that each process compiles, files of
    tasks, and the download cache of the hub's client in the stages that have network.
    """
    amount = given_ephemeral_storage(given)
    if amount is not None:
        return amount
    downloads = SCRATCH_GIB_ONLINE if run.kind in ONLINE_KINDS else 0
    return f"{SCRATCH_GIB + SCRATCH_GIB_A_PROCESS * run.resources.processes_per_node + downloads}Gi"


def given_ephemeral_storage(given: Manifest) -> str | None:
    """Return the ephemeral storage that the template's trainer may use: its limit, else its request."""
    resources: Manifest = given.get("resources") or {}
    for name in ("limits", "requests"):
        amount = (resources.get(name) or {}).get(EPHEMERAL_STORAGE)
        if amount is not None and is_quantity(amount):
            return str(amount)
    return None


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
