"""Tests what a real Prometheus scrapes of an adaptation: from the operator, and from rank 0 of the running run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_contract.pod.failure import Cause, ExitCode
from dapt_contract.stage_file import StageFile
from dapt_operator.testing.objects import Ends
from dapt_trainer.pod import progress as trainer
from dapt_trainer.pod.heartbeat import Heart
from testcluster import prometheus
from testcluster.adaptations import STAGES, Adaptation, healthy, make_claim, make_profile
from testcluster.control_plane import ControlPlane
from testcluster.helm import helm
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.pod_life import Life, ScriptedPod
from testcluster.processes import free_port
from testcluster.prometheus import Prometheus
from testcluster.release import CHART
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

OF_AN_ADAPTATION = {
    "dapt_condition": "type",
    "dapt_phase": "phase",
    "dapt_reason": "reason",
    "dapt_eta_seconds": None,
    "dapt_cost": None,
    "dapt_stage_waiting_seconds": "stage",
    "dapt_general_perplexity_increase_ratio": None,
    "dapt_domain_perplexity_decrease_ratio": None,
    "dapt_task_drop_points": "task",
    "dapt_gain": None,
    "dapt_gate_passed": "gate",
    "dapt_selected_step": None,
    "dapt_progress_ratio": None,
    "dapt_tokens_total": None,
    "dapt_gpu_seconds_total": "stage",
    "dapt_goodput_ratio": None,
    "dapt_restarts_total": "cause",
    "dapt_rollbacks_total": None,
    "dapt_stage_duration_seconds": "stage",
}
"""Series of the operator that speak of an adaptation, each with its label beside namespace and name."""
OF_THE_OPERATOR = {
    "dapt_build_info",
    "dapt_operator_acting",
    "dapt_work_queue_depth",
    "dapt_last_list_timestamp_seconds",
    "dapt_reconcile_duration_seconds_bucket",
    "dapt_reconcile_duration_seconds_count",
    "dapt_reconcile_duration_seconds_sum",
    "dapt_reconcile_errors_total",
    "dapt_unreadable_adaptations",
}
OF_RANK_0 = {
    "dapt_trainer_loss": 2.5,
    "dapt_trainer_learning_rate": 1e-4,
    "dapt_trainer_gradient_norm": 0.7,
    "dapt_trainer_step_seconds": 1.5,
    "dapt_trainer_tokens_per_second": 41200.0,
    "dapt_trainer_mfu_ratio": 0.42,
    "dapt_trainer_checkpoint_seconds": 3.5,
}
"""With the values that the test lets it tell."""
OURS = '{__name__=~"dapt_.+",__name__!~".*_created"}'


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str) -> str:
    """The test's namespace, with a work volume."""
    if prometheus.find() is None:
        pytest.skip(prometheus.HOW_TO_GET_IT)
    make_claim(control_plane, namespace)
    return namespace


@pytest.fixture
def operator(control_plane: ControlPlane, place: str) -> Iterator[OperatorProcess]:
    with OperatorProcess(control_plane, [place], flags=[f"--port={free_port()}"]) as running:
        running.wait_for("acting")
        yield running


@pytest.fixture
def pods_file(tmp_path: Path) -> Path:
    """Where Prometheus hears of pods."""
    path = tmp_path / "pods.json"
    prometheus.write_pods([], path)
    return path


@pytest.fixture
def reader(place: str, operator: OperatorProcess, pods_file: Path) -> Iterator[Prometheus]:
    """Prometheus as the chart's monitors set it up; the operator, which is no pod here, by its address."""
    values = {
        "metrics.monitor": "PodMonitor",
        "metrics.trainerPodMonitor": "true",
        "namespaces": f"{{{place}}}",
    }
    rendered = helm("template", "dapt", CHART, *(f"--set={name}={value}" for name, value in values.items()))
    monitors = {
        item["metadata"]["name"]: item
        for item in YAML(typ="safe", pure=False).load_all(rendered)
        if item and item["kind"] == "PodMonitor"
    }
    honors = monitors["dapt"]["spec"]["podMetricsEndpoints"][0]["honorLabels"]
    address = f"127.0.0.1:{operator.wait_for('started')['port']}"
    configs = [
        prometheus.fixed("operator", address, honor_labels=honors),
        prometheus.of_pod_monitor(monitors["dapt-trainers"], pods_file),
    ]
    with Prometheus(configs) as running:
        yield running


def script(pod: ScriptedPod) -> Life:
    """Healthy, but the first try of prepare is lost and pretraining runs on."""
    if pod.stage is None or pod.stage.kind == "pretrain":
        return Life()
    if pod.stage.kind == "prepare" and pod.stage.run.try_number == 1:
        return Life(
            then=Ends(ExitCode.INFRASTRUCTURE, cause=Cause.INFRASTRUCTURE, message="the disk is gone")
        )
    return healthy(pod)


@pytest.fixture
def rank_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Starts what rank 0 of a pod serves, by the trainer's own code, at the pod's address."""
    servers: list[Any] = []

    def serve(pod: dict[str, Any], stage: StageFile) -> trainer.Board:
        monkeypatch.setenv(trainer.HOST, pod["status"]["podIP"])
        board = trainer.Board(stage, Heart(tmp_path, 0))
        container = next(item for item in pod["spec"]["containers"] if item["name"] == "trainer")
        port = next(item["containerPort"] for item in container["ports"] if item["name"] == "progress")
        servers.append(trainer.serve(board, stage, port))
        assert servers[-1] is not None
        return board

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def index_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def exporters(reader: Prometheus) -> dict[str, set[str]]:
    """The jobs that export each series now."""
    found: dict[str, set[str]] = {}
    for sample in reader.query(f"count by (__name__, job) ({OURS})"):
        found.setdefault(sample.name, set()).add(sample.labels["job"])
    return found


def read_adaptation(reader: Prometheus, ours: dict[str, str]) -> dict[tuple[str, str], float]:
    """The operator's series of an adaptation, each by its name and its own label; all are there, and no others."""
    found = reader.query('{job="operator",__name__=~"dapt_.+",__name__!~".*_created"}')
    assert {sample.name for sample in found} == set(OF_AN_ADAPTATION) | OF_THE_OPERATOR
    values: dict[tuple[str, str], float] = {}
    for sample in found:
        if sample.name in OF_THE_OPERATOR:
            continue
        label = OF_AN_ADAPTATION[sample.name]
        assert sample.labels.items() >= ours.items()
        assert set(sample.labels) - {"namespace", "name", "job", "instance"} == ({label} if label else set())
        values[sample.name, sample.labels.get(label or "", "")] = sample.value
    return values


def test_prometheus_reads_every_series_from_one_exporter_until_its_object_is_gone(
    control_plane: ControlPlane,
    place: str,
    kubelet: ScriptedKubelet,
    operator: OperatorProcess,
    reader: Prometheus,
    pods_file: Path,
    rank_0: Any,
) -> None:
    kubelet.script = script
    profile = make_profile(control_plane, accelerator={"pricePerHour": 3600})
    adaptation = Adaptation(control_plane, place, profile)
    ours = {"namespace": place, "name": "clinical"}

    # --- while pretraining runs: rank 0 tells, and nobody else is asked ---
    pods = {index_of(pod): pod for pod in adaptation.wait_for_run("pretrain", pods=2)}
    (stage, *_) = (pod.stage for pod in kubelet.pods if pod.stage and pod.stage.kind == "pretrain")
    board = rank_0(pods["0"], stage)
    board.update(
        step=10,
        total_steps=40,
        fraction=0.25,
        tokens=10_240,
        loss_nats=OF_RANK_0["dapt_trainer_loss"],
        learning_rate=OF_RANK_0["dapt_trainer_learning_rate"],
        gradient_norm=OF_RANK_0["dapt_trainer_gradient_norm"],
        step_seconds=OF_RANK_0["dapt_trainer_step_seconds"],
        tokens_per_second=OF_RANK_0["dapt_trainer_tokens_per_second"],
        mfu_ratio=OF_RANK_0["dapt_trainer_mfu_ratio"],
        checkpoint_seconds=OF_RANK_0["dapt_trainer_checkpoint_seconds"],
    )
    prometheus.write_pods(adaptation.children("Pod"), pods_file)
    eventually(lambda: reader.query("dapt_trainer_loss"), "rank 0's first scrape")
    told = {sample.name: sample for sample in reader.query('{__name__=~"dapt_trainer_.+"}')}
    assert {name: sample.value for name, sample in told.items()} == OF_RANK_0
    for sample in told.values():
        assert sample.labels.items() >= ours.items()
        assert sample.labels["pod"] == pods["0"]["metadata"]["name"]
    trainers = [address for address in reader.targets() if not address.startswith("127.0.0.1")]
    assert trainers == [f"{pods['0']['status']['podIP']}:9400"]
    eventually(
        lambda: [sample.value for sample in reader.query("dapt_progress_ratio")] == [0.25],
        "the progress that rank 0 told the operator",
    )
    assert [sample.value for sample in reader.query("dapt_tokens_total")] == [10_240]
    (held,) = reader.query('dapt_running_accelerators{stage="pretrain"}')
    assert (held.labels["name"], held.value) == ("clinical", 4)
    assert [sample.value for sample in reader.query("dapt_operator_acting")] == [1]

    jobs = exporters(reader)
    assert all(jobs.pop(name) == {"dapt-trainers"} for name in OF_RANK_0)
    assert all(exporter == {"operator"} for exporter in jobs.values())

    # --- when it has ended: the numbers of the status ---
    kubelet.script = healthy_but_slow
    adaptation.wait_for_phase("Published")
    prometheus.write_pods(adaptation.children("Pod"), pods_file)
    reader.wait_for_scrapes("operator", more=2)
    status = adaptation.status
    values = read_adaptation(reader, ours)
    assert values["dapt_general_perplexity_increase_ratio", ""] == status["forgetting"]
    assert values["dapt_gain", ""] == status["gain"]
    assert values["dapt_selected_step", ""] == 40
    assert values["dapt_progress_ratio", ""] == 1
    assert values["dapt_tokens_total", ""] == 40_960
    assert values["dapt_rollbacks_total", ""] == 0
    assert values["dapt_restarts_total", "Infrastructure"] == 1
    assert values["dapt_goodput_ratio", ""] == status["usage"]["goodput"]
    assert {gate: value for (name, gate), value in values.items() if name == "dapt_gate_passed"} == {
        "generalPerplexity": 1,
        "generalScoreDrop": 1,
        "domainGain": 1,
    }
    assert values["dapt_task_drop_points", "general"] == 0
    timed = {stage for name, stage in values if name == "dapt_stage_duration_seconds"}
    assert timed == set(STAGES)
    assert {stage for name, stage in values if name == "dapt_gpu_seconds_total"} == set(STAGES)
    assert values["dapt_gpu_seconds_total", "pretrain"] > 0
    assert values["dapt_cost", ""] == status["usage"]["cost"]
    assert (values["dapt_phase", "Published"], values["dapt_eta_seconds", ""]) == (1, 0)

    # --- the same from the next operator, for they are the resource's ---
    operator.kill()
    operator.start()
    operator.wait_for("acting", count=2)
    reader.wait_for_scrapes("operator", more=2)
    assert read_adaptation(reader, ours) == values

    # --- nothing outlives its object ---
    eventually(lambda: not reader.query('{__name__=~"dapt_trainer_.+"}'), "the end of rank 0's series")
    control_plane.api.delete("DomainAdaptation", "clinical", place)
    eventually(lambda: not set(exporters(reader)) & set(OF_AN_ADAPTATION), "the end of its series")
    assert set(exporters(reader)) == OF_THE_OPERATOR


def healthy_but_slow(pod: ScriptedPod) -> Life:
    """Long enough to count, and with the time that a step took."""
    end = healthy(pod).then
    assert end is not None
    if pod.stage is not None and pod.stage.kind == "pretrain" and end.facts is not None:
        end = replace(end, facts=end.facts.model_copy(update={"step_seconds_median": 0.01}))
    return Life(then=end, run_seconds=1.2)
