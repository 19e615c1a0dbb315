"""Launches runs as Indexed Jobs: one pod for each node, started together, failed together; needs no controller.

A retry is a new Job with its own name. Rendezvous is static: node rank = completion index, and the coordinator is the
first pod's stable host name below the adaptation's headless Service, which only runs of several nodes have.
"""

from __future__ import annotations

from datetime import datetime

from dapt_operator.api import names
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.launchers.labels import adaptation_labels
from dapt_operator.launchers.observe.containers import parse_time
from dapt_operator.launchers.observe.run_states import Gang, read_run_states, true_conditions
from dapt_operator.launchers.render.environment import SINGLE_POD, Rendezvous
from dapt_operator.launchers.render.objects import (
    gang_metadata,
    job_spec,
    object_metadata,
    stage_config_map,
    work_claim,
)
from dapt_operator.stage_run import Children, JsonObject, Manifest, Owner, RunState, StageRun


def render(run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> tuple[Manifest, ...]:
    """Return all objects of one run, in the order of their creation; equal input gives equal output."""
    # The ConfigMap comes first: a pod whose volume is missing waits until the kubelet tries again.
    config_map, digest = stage_config_map(run, profile, owner)
    spec: JsonObject = job_spec(run, profile, owner, digest, _rendezvous(run, owner))
    if run.queue is not None:
        spec["suspend"] = True  # only at creation: afterwards the queue owns the field
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": gang_metadata(run, profile, owner),
        "spec": spec,
    }
    return (config_map, job)


def shared(profile: AdaptationProfileSpec, owner: Owner, nodes: int) -> tuple[Manifest, ...]:
    """Return the work volume's claim if the profile has a template for it, and the Service of gangs of several pods."""
    return (*work_claim(profile, owner), *((_service(profile, owner),) if nodes > 1 else ()))


def states(children: Children, now: datetime) -> tuple[RunState, ...]:
    """Return the state of every run that has a Job, oldest fence first."""
    return read_run_states(children, now, _read)


def _rendezvous(run: StageRun, owner: Owner) -> Rendezvous:
    if not run.has_connected_pods:
        return SINGLE_POD
    service = names.service_name(owner.name, owner.uid)
    return Rendezvous(host=f"{run.name}-0.{service}", subdomain=service)


def _service(profile: AdaptationProfileSpec, owner: Owner) -> Manifest:
    name = names.service_name(owner.name, owner.uid)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": object_metadata(owner, name, adaptation_labels(owner)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # ranks resolve each other before any pod is ready
            "selector": adaptation_labels(owner),
            "ports": [
                {"name": "coordinator", "port": profile.ports.coordinator},
                {"name": "progress", "port": profile.ports.progress},
            ],
        },
    }


def _read(manifest: Manifest) -> Gang | None:
    if manifest.get("kind", "Job") != "Job":
        return None
    spec, conditions = manifest.get("spec") or {}, true_conditions(manifest)
    failed = conditions.get("Failed")
    return Gang(
        kind="Job",
        completions=int(spec.get("completions") or 1),
        is_suspended=bool(spec.get("suspend")),
        pod_spec=(spec.get("template") or {}).get("spec") or {},
        complete=conditions.get("Complete"),
        failed=failed,
        is_deadline_passed=(failed or {}).get("reason") == "DeadlineExceeded",
        started=parse_time((manifest.get("status") or {}).get("startTime")),
    )
