"""What is particular to JobSets; all else is compared with the golden manifests or tested for both launchers."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.launchers import LAUNCHERS, all_states, indexed_job, jobset
from dapt_operator.launchers.labels import identity_of
from dapt_operator.stage_run import Children, RunPhase, StageRun, plain
from support.gang_objects import FACTS, NOW, RUN, SUCCESS, ended, job, job_set, job_uid, pod, state_of
from support.launch_builders import owner, profile, stage_run
from support.launch_cases import CASES, rendered

LONGEST_NAME = "a" * 63
STAGES = (
    "destination",
    "tuning_data",
    "prepare",
    "baseline",
    "pretrain",
    "evaluate",
    "finetune",
    "verify",
    "publish",
)


def _set(case: str) -> dict[str, Any]:
    return plain(rendered("JobSet", case)[-1])


def _gang(manifest: dict[str, Any]) -> dict[str, Any]:
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    found: dict[str, Any] = replicated["template"]["spec"]
    return found


@pytest.mark.parametrize("case", CASES)
def test_both_launchers_start_the_same_job(case: str) -> None:
    """Only what the JobSet controller sets itself, and the host where ranks meet, is another."""
    first, second = plain(rendered("IndexedJob", case)[-1]["spec"]), _gang(_set(case))
    first.pop("suspend", None)
    pod_spec = first["template"]["spec"]
    subdomain = pod_spec.pop("subdomain", None)
    name = CASES[case][0].name
    for variable in pod_spec["containers"][0]["env"]:
        if variable["name"] == "PET_MASTER_ADDR" and subdomain is not None:
            assert variable["value"] == f"{name}-0.{subdomain}"
            variable["value"] = f"{name}-n-0-0.{name}"
    assert second == first


def test_a_gang_is_never_restarted_in_place() -> None:
    assert _set("one-cpu-pod")["spec"]["failurePolicy"] == {
        "maxRestarts": 0,
        "rules": [{"name": "deadline", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]}],
    }


def test_only_a_gang_of_several_pods_has_host_names() -> None:
    assert _set("one-cpu-pod")["spec"]["network"]["enableDNSHostnames"] is False
    assert _set("two-nodes-of-eight-gpus")["spec"]["network"] == {
        "enableDNSHostnames": True,
        "publishNotReadyAddresses": True,
    }


def test_a_jobset_brings_its_own_service() -> None:
    kinds = [item["kind"] for item in rendered("JobSet", "two-queued-nodes-with-claims")]
    assert kinds == ["PersistentVolumeClaim", "ConfigMap", "JobSet"]


def test_job_made_by_a_jobset_carries_no_run_labels() -> None:
    """Its labels would make it one."""
    (replicated,) = _set("one-cpu-pod")["spec"]["replicatedJobs"]
    assert "metadata" not in replicated["template"]


@pytest.mark.parametrize("case", CASES)
def test_the_identity_can_be_read_back_from_jobset_and_pod(case: str) -> None:
    manifest = _set(case)
    assert identity_of(manifest) == CASES[case][0].identity
    assert identity_of({"metadata": _gang(manifest)["template"]["metadata"] | {"namespace": "health"}}) == (
        CASES[case][0].identity
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_longest_names_make_legal_host_names(launcher: str, stage: str) -> None:
    of = owner(LONGEST_NAME)
    base = stage_run(nodes=10_000, of=of)
    run = StageRun(
        identity=base.identity.model_copy(update={"stage": stage}),
        kind=base.kind,
        config=base.config,
        resources=base.resources,
    )
    manifest = LAUNCHERS[launcher].render(run, profile(), of)[-1]
    job_name = manifest["metadata"]["name"] + ("-n-0" if launcher == "JobSet" else "")
    last_index = 0 if stage in ("destination", "tuning_data") else 9999  # of one pod, and of at most 10,000
    assert len(f"{job_name}-{last_index}-abcde") <= 63
    for item in (*LAUNCHERS[launcher].shared(profile(), of, 2), manifest):
        assert len(item["metadata"]["name"]) <= 63
        assert all(len(str(value)) <= 63 for value in item["metadata"]["labels"].values())


def test_a_success_has_the_first_pods_facts() -> None:
    state = state_of(ended(0, 0, SUCCESS), ended(1, 0), of=job_set(RUN, {"type": "Completed"}))
    assert (state.phase, state.facts, state.object_kind) == (RunPhase.SUCCEEDED, FACTS, "JobSet")
    assert state_of(ended(0, 0, SUCCESS), ended(1, 0), of=job_set()).phase is RunPhase.SUCCEEDED


def test_a_job_complete_condition_is_not_a_jobsets() -> None:
    assert state_of(pod(0, "Running"), of=job_set(RUN, {"type": "Complete"})).phase is RunPhase.RUNNING


def test_jobset_deadline_is_distinguished_from_another_failure() -> None:
    passed = job_set(RUN, {"type": "Failed", "reason": "FailJobSetFailurePolicyAction"})
    state = state_of(ended(0, 143), ended(1, 137), of=passed)
    assert (state.cause, state.message) == (Cause.DEADLINE, "the deadline of the JobSet passed")
    other = job_set(RUN, {"type": "Failed", "reason": "ReachedMaxRestarts"})
    state = state_of(ended(0, 143), ended(1, 137), of=other)
    assert state.cause is Cause.INFRASTRUCTURE


def test_accelerators_are_those_of_all_pods() -> None:
    run = stage_run(nodes=2, accelerators=8)
    assert state_of(of=job_set(run)).accelerators == 16


def test_a_profile_may_change_its_launcher_between_two_runs() -> None:
    first, second = stage_run(fence=1, nodes=2), stage_run(try_number=2, fence=2, nodes=2)
    children = Children(
        jobs=(job_set(second), job(first)),
        pods=(ended(0, 75, run=first), ended(1, 75, run=first), pod(0, "Running", second)),
        child_jobs={second.name: job_uid(second)},
    )
    assert [(state.object_kind, state.phase) for state in all_states(children, NOW)] == [
        ("Job", RunPhase.FAILED),
        ("JobSet", RunPhase.RUNNING),
    ]
    assert [state.object_kind for state in jobset.states(children, NOW)] == ["JobSet"]
    assert [state.object_kind for state in indexed_job.states(children, NOW)] == ["Job"]


@pytest.mark.parametrize(
    "spec", [{}, {"replicatedJobs": []}, {"replicatedJobs": [{}]}, {"replicatedJobs": None}]
)
def test_jobset_with_an_emptied_spec_is_pending(spec: dict[str, Any]) -> None:
    found = job_set()
    found["spec"] = spec
    assert state_of(of=found).phase is RunPhase.PENDING
