"""Launches runs as JobSets, for clusters whose queues, placement and tools expect them. Each JobSet has one Job.

`maxRestarts` is 0 because a retry is a new object with its own name and its own fence. The failure policy has one rule,
which only distinguishes the Job's deadline from other failures: a JobSet's condition does not name it otherwise. Host
names lie below a Service that the JobSet controller creates; a run of one node has none.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.launchers.labels import REPLICATED_JOB, child_job_name
from dapt_operator.launchers.observe.run_states import Gang, read_run_states, true_conditions
from dapt_operator.launchers.render.environment import SINGLE_POD, Rendezvous
from dapt_operator.launchers.render.objects import gang_metadata, job_spec, stage_config_map, work_claim
from dapt_operator.stage_run import Children, JsonObject, Manifest, Owner, RunState, StageRun

API_VERSION: Final = "jobset.x-k8s.io/v1alpha2"
DEADLINE_RULE: Final = {
    "name": "deadline",
    "action": "FailJobSet",
    "onJobFailureReasons": ["DeadlineExceeded"],
}
_DEADLINE_REASON: Final = "FailJobSetFailurePolicyAction"
"""Reason that the JobSet controller writes when `DEADLINE_RULE`, the only rule, has matched."""


def render(run: StageRun, profile: AdaptationProfileSpec, owner: Owner) -> tuple[Manifest, ...]:
    """Return all objects of one run, in the order of their creation; equal input gives equal output."""
    config_map, digest = stage_config_map(run, profile, owner)
    has_peers = run.has_connected_pods
    rendezvous = Rendezvous(host=f"{child_job_name(run.name)}-0.{run.name}") if has_peers else SINGLE_POD
    spec: JsonObject = {
        "network": {"enableDNSHostnames": has_peers, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": 0, "rules": [DEADLINE_RULE]},
        "replicatedJobs": [
            {
                "name": REPLICATED_JOB,
                "replicas": 1,
                "template": {"spec": job_spec(run, profile, owner, digest, rendezvous)},
            }
        ],
    }
    if run.queue is not None:
        spec["suspend"] = True  # only at creation: afterwards the queue owns the field
    metadata = gang_metadata(run, profile, owner)
    return (config_map, {"apiVersion": API_VERSION, "kind": "JobSet", "metadata": metadata, "spec": spec})


def shared(profile: AdaptationProfileSpec, owner: Owner, nodes: int) -> tuple[Manifest, ...]:  # noqa: ARG001
    """Return the work volume's claim if the profile has a template for it."""
    return work_claim(profile, owner)


def states(children: Children, now: datetime) -> tuple[RunState, ...]:
    """Return the state of every run that has a JobSet, oldest fence first."""
    return read_run_states(children, now, _read)


def _read(manifest: Manifest) -> Gang | None:
    if manifest.get("kind") != "JobSet":
        return None
    spec, conditions = manifest.get("spec") or {}, true_conditions(manifest)
    replicated: Manifest = next(iter(spec.get("replicatedJobs") or []), {})
    job: Manifest = (replicated.get("template") or {}).get("spec") or {}
    failed = conditions.get("Failed")
    return Gang(
        kind="JobSet",
        completions=int(job.get("completions") or 1),
        is_suspended=bool(spec.get("suspend")),
        pod_spec=(job.get("template") or {}).get("spec") or {},
        complete=conditions.get("Completed"),
        failed=failed,
        is_deadline_passed=(failed or {}).get("reason") == _DEADLINE_REASON,
    )
