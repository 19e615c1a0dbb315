"""What an Indexed Job's objects hold, and what of a pod is the same for every launcher."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest

from dapt_contract.stage_file import StageFile
from dapt_operator.api.quantity import parse_quantity
from dapt_operator.launchers import LAUNCHERS, indexed_job
from dapt_operator.launchers.labels import identity_of
from dapt_operator.stage_run import RunResources, StageRun, plain
from support.launch_builders import owner, profile, stage_run
from support.launch_cases import CASES

LONG_NAME = "a-name-that-is-much-longer-than-what-fits-into-the-names"


def _job(case: str) -> dict[str, Any]:
    run, spec = CASES[case]
    return plain(indexed_job.render(run, spec, owner())[-1])


def _trainer(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("launcher", LAUNCHERS.values())
def test_pods_of_prepare_have_no_coordinator(launcher: Any) -> None:
    run = dataclasses.replace(stage_run(nodes=3), kind="prepare")
    holder = plain(launcher.render(run, profile(), owner())[-1])
    text = str(holder)
    assert "'completions': 3" in text
    assert "'subdomain'" not in text
    assert "{'name': 'PET_MASTER_ADDR', 'value': '127.0.0.1'}" in text
    assert "{'name': 'PET_NNODES', 'value': '3'}" in text


def test_the_stage_file_can_be_read_back_and_has_the_digest_of_the_arguments() -> None:
    run, spec = CASES["one-cpu-pod"]
    objects = indexed_job.render(run, spec, owner())
    config_map = next(item for item in objects if item["kind"] == "ConfigMap")
    text = config_map["data"]["stage.json"]
    assert config_map["immutable"] is True
    stage = StageFile.model_validate_json(text)
    assert stage == run.stage_file
    assert stage.config_digest == run.stage_file.config_digest
    arguments = _trainer(plain(objects[-1]))["args"]
    assert arguments[arguments.index("--sha256") + 1] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("case", CASES)
def test_the_identity_can_be_read_back_from_job_and_pod(case: str) -> None:
    job = _job(case)
    assert identity_of(job) == CASES[case][0].identity
    pod = {"metadata": job["spec"]["template"]["metadata"] | {"namespace": "health"}}
    assert identity_of(pod) == CASES[case][0].identity


def test_foreign_object_has_no_run_identity() -> None:
    assert (
        identity_of(
            {"metadata": {"name": "x", "labels": {"dapt.dev/adaptation": "x", "dapt.dev/try": "one"}}}
        )
        is None
    )


def test_a_gang_has_no_partial_success() -> None:
    spec = _job("two-nodes-of-eight-gpus")["spec"]
    assert spec["completionMode"] == "Indexed"
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (2, 2, 0)
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_only_a_run_of_several_nodes_has_a_service_and_a_stable_coordinator() -> None:
    run, spec = CASES["two-nodes-of-eight-gpus"]
    objects = indexed_job.render(run, spec, owner())
    (service,) = indexed_job.shared(spec, owner(), 2)
    assert service["kind"] == "Service"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    pod = objects[-1]["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    values = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
    assert values["PET_MASTER_ADDR"] == f"{run.name}-0.{service['metadata']['name']}"
    run, spec = CASES["one-cpu-pod"]
    assert [item["kind"] for item in indexed_job.render(run, spec, owner())] == ["ConfigMap", "Job"]
    assert [item["kind"] for item in indexed_job.shared(spec, owner(), 1)] == ["PersistentVolumeClaim"]
    assert [item["kind"] for item in indexed_job.shared(spec, owner(), 2)] == [
        "PersistentVolumeClaim",
        "Service",
    ]


def test_the_profile_cannot_replace_what_the_operator_owns() -> None:
    container = _trainer(_job("two-nodes-of-eight-gpus"))
    values = {item["name"]: item.get("value") for item in container["env"]}
    assert container["command"] == ["python", "-m", "dapt_trainer"]
    assert container["image"] == "registry.example/dapt-trainer:1.4.0"
    assert "livenessProbe" not in container
    assert values["PET_NNODES"] == "2"
    assert values["NCCL_SOCKET_IFNAME"] == "ib0"
    assert [item["name"] for item in container["env"]].count("PET_NNODES") == 1
    labels = _job("two-nodes-of-eight-gpus")["spec"]["template"]["metadata"]["labels"]
    assert labels["dapt.dev/stage"] == "publish"
    assert labels["zone"] == "a"


def test_restricted_security_is_the_default_and_the_profile_adds_to_it() -> None:
    plain_pod = _job("one-cpu-pod")["spec"]["template"]["spec"]
    assert plain_pod["automountServiceAccountToken"] is False
    assert plain_pod["securityContext"]["runAsNonRoot"] is True
    assert plain_pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert _trainer(_job("one-cpu-pod"))["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    with_fabric = _trainer(_job("two-nodes-of-eight-gpus"))["securityContext"]["capabilities"]
    assert with_fabric == {"drop": ["ALL"], "add": ["IPC_LOCK"]}


@pytest.mark.parametrize(
    ("cpu", "processes", "threads"), [("32", 8, "4"), ("500m", 1, "1"), ("7", 2, "3"), (None, 2, None)]
)
def test_threads_follow_from_the_cpu_request(cpu: str | None, processes: int, threads: str | None) -> None:
    base = stage_run()
    resources = RunResources(
        nodes=1, processes_per_node=processes, accelerators_per_node=0, cpu=cpu, memory=None
    )
    run = StageRun(identity=base.identity, kind=base.kind, config=base.config, resources=resources)
    job = plain(indexed_job.render(run, profile(), owner())[-1])
    values = {item["name"]: item.get("value") for item in _trainer(job)["env"]}
    assert values.get("OMP_NUM_THREADS") == threads


def test_the_signing_key_is_mounted_only_where_it_is_used() -> None:
    def mounts(case: str) -> set[str]:
        return {item["mountPath"] for item in _trainer(_job(case))["volumeMounts"]}

    assert "/etc/dapt/signing" in mounts("two-nodes-of-eight-gpus")
    assert "/etc/dapt/signing" not in mounts("one-cpu-pod")


def test_names_stay_short_enough_for_host_names() -> None:
    of = owner(LONG_NAME)
    run = stage_run(nodes=2, of=of)
    for item in indexed_job.render(run, profile(), of) + indexed_job.shared(profile(), of, 2):
        assert len(item["metadata"]["name"]) <= 52, item["kind"]  # 63 less "-INDEX" of the pods' host names


def test_job_names_of_two_runs_differ() -> None:
    assert stage_run(try_number=1).name != stage_run(try_number=2).name


def test_the_map_of_launchers_has_the_names_of_the_profile() -> None:
    assert LAUNCHERS["IndexedJob"] is indexed_job


def test_a_quantity_that_is_none_is_refused() -> None:
    assert parse_quantity("64Gi") == 64 * 2**30
    with pytest.raises(ValueError, match="'many' is not a Kubernetes quantity"):
        parse_quantity("many")
