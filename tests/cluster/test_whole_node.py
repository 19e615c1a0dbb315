"""Real pods: kubelet, containerd, pod network and the cluster's DNS below a real control plane.

The operator is the chart's own pod, with the rights that the chart gives it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dapt_contract.pod.message import decode_message
from dapt_contract.stages.publish import PublishFacts
from dapt_operator.launchers import indexed_job
from dapt_operator.stage_run import Owner
from support.launch_builders import fake_manifests, profile, stage_run
from testcluster import build, host_pods, laptop
from testcluster.control_plane import ControlPlane
from testcluster.helm import helm
from testcluster.network import bridge
from testcluster.node import WholeNode, hindrance
from testcluster.waiting import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.whole_node, pytest.mark.torch, pytest.mark.timeout(1200)]

POD_SECONDS = 300.0
"""Patience with pods that import torch on a busy machine."""
LIFE_SECONDS = 900.0
"""The same with a whole adaptation."""
FAKE_AGENT = (
    f"import runpy; runpy.run_path('{host_pods.INSIDE}/tests/trainer/pod/fake/pod.py', run_name='__main__')"
)
OPERATORS = "dapt-system"
NAME, NAMESPACE = "clinical", "default"
STEPS, CHECKPOINTS = 48, (16, 32, 48)
"""Of the page's manifest."""


@dataclass(frozen=True)
class Cluster:
    """A control plane with one real node."""

    plane: ControlPlane
    node: WholeNode

    def kubectl(self, *arguments: str, folder: Path | None = None) -> str:
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.plane.kubeconfig), *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type_in(self, line: str, folder: Path) -> str:
        """A command of a page, as it stands there."""
        return self.kubectl(*shlex.split(line)[1:], folder=folder)

    def pods(self, namespace: str, labels: str = "") -> list[dict[str, Any]]:
        return self.plane.api.list("Pod", namespace, labels=labels)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    why_not = hindrance()
    if not why_not and build.built("helm") is None and not build.have_go():
        why_not = "the chart is installed by Helm: `make cluster` builds it where there is Go"
    if not why_not and shutil.which("kubectl") is None:
        why_not = "no kubectl here, by which users work"
    if why_not:
        pytest.skip(why_not)
    with (
        bridge() as network,
        ControlPlane(address=network.address, node_lifecycle=True) as plane,
        WholeNode(plane, network, images=[host_pods.BASE_IMAGE]) as node,
    ):
        yield Cluster(plane, node)


def install_chart(cluster: Cluster, *flags: str) -> None:
    """Install or upgrade the release, as its users do."""
    values = host_pods.operator_values(cluster.plane.address, urlsplit(cluster.plane.url).port or 443)
    file = cluster.plane.folder / "values.json"
    file.write_text(json.dumps(values))
    chart = host_pods.ROOT / "charts" / "dapt"
    arguments: tuple[str | Path, ...] = ("upgrade", "--install", "dapt", chart, "--namespace", OPERATORS)
    helm(*arguments, "--values", file, *flags, kubeconfig=cluster.plane.kubeconfig)


@pytest.fixture(scope="module")
def operator(cluster: Cluster) -> str:
    """The chart, installed; the name of its Deployment."""
    cluster.plane.make_namespace(OPERATORS, host_pods.PRIVILEGED)
    install_chart(cluster)
    deployment = cluster.plane.api.list("Deployment", OPERATORS)[0]["metadata"]["name"]

    def is_up() -> bool:
        found = cluster.plane.api.get("Deployment", deployment, OPERATORS)
        said = [
            (pod["status"].get("conditions"), pod["status"].get("containerStatuses"))
            for pod in cluster.pods(OPERATORS)
        ]
        assert found["status"].get("readyReplicas") == 1, said
        return True

    eventually(is_up, "the operator's pod", seconds=POD_SECONDS, every_seconds=0.5)
    return deployment


def test_two_pods_find_each_other_by_the_clusters_names(cluster: Cluster, tmp_path: Path) -> None:
    namespace = cluster.plane.make_namespace("names", host_pods.PRIVILEGED)
    # Of a kind that this cluster does not know yet, so that nothing is collected for want of the owner.
    owner = Owner(namespace=namespace, name="clinical-llama", uid="0b7c8a52-9d1e-4b6e-8c4f-2f1f6a3d9e10")
    work = host_pods.open_folder(tmp_path / "work")
    cluster.plane.api.create(host_pods.persistent_volume("names-work", work))
    changes: dict[str, Any] = {
        "trainerImage": host_pods.BASE_IMAGE.reference,
        "podTemplate": host_pods.pod_template(),
        "storage": {"claimTemplate": host_pods.claim_spec()},
    }
    run = stage_run("all-reduce", nodes=2, of=owner)
    config, job = fake_manifests(run, owner, **changes)
    job["spec"]["template"]["spec"]["containers"][0]["command"] = ["python", "-c", FAKE_AGENT]
    for manifest in (*indexed_job.shared(profile(**changes), owner, nodes=2), config, job):
        cluster.plane.api.create(manifest)

    def ended() -> list[dict[str, Any]]:
        found = cluster.pods(namespace)
        statuses = [status for pod in found for status in pod["status"].get("containerStatuses", [])]
        last_words = [status["state"]["terminated"] for status in statuses if "terminated" in status["state"]]
        assert len(last_words) == 2, [pod["status"] for pod in found]
        return sorted(last_words, key=lambda ended: '"facts"' not in ended["message"])

    first, second = eventually(ended, "both pods' end", seconds=POD_SECONDS, every_seconds=0.5)
    assert (first["exitCode"], second["exitCode"]) == (0, 0)
    assert isinstance(decode_message(first["message"]).parsed_facts(), PublishFacts)
    assert decode_message(second["message"]).facts is None
    assert [(work / f"sum-{rank}").read_text() for rank in (0, 1)] == ["3.0", "3.0"]


# --- docs/laptop-cluster.md by the operator's own pod; one of the training pods is killed ---


@dataclass(frozen=True)
class Life:
    """What an adaptation left: its resource, and its folders on this machine."""

    cluster: Cluster
    resource: dict[str, Any]
    work: Path
    models: Path
    killed: str
    """Name of the pod that was killed."""
    operators: tuple[str, str]
    """Names of the operator's pod at the beginning and at the end."""

    def pretraining(self, try_number: int) -> dict[str, Any]:
        """What pretraining reported."""
        return pretraining_report(self.work, try_number)

    @property
    def conditions(self) -> dict[str, tuple[str, str]]:
        return {
            item["type"]: (item["status"], item["reason"]) for item in self.resource["status"]["conditions"]
        }


def pretraining_report(work: Path, try_number: int) -> dict[str, Any]:
    file = work / "stages" / "pretrain-a1" / f"try-{try_number}" / "report.json"
    report: dict[str, Any] = json.loads(file.read_text())["body"]["report"]
    return report


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a node's /dapt with model and text in data/; the local run has its manifest there as well."""
    folder = tmp_path_factory.mktemp("laptop")
    laptop.make_inputs(folder / "data")
    for name in ("work", "models"):
        host_pods.open_folder(folder / name)
    return folder


@pytest.fixture(scope="module")
def life(
    cluster: Cluster,
    operator: str,
    inputs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Life:
    work, models = inputs / "work", inputs / "models"
    typed_in = tmp_path_factory.mktemp("checkout")
    laptop.write_examples(inputs, typed_in)
    applied, waited = laptop.commands("kubectl")[:-1], laptop.commands("kubectl")[-1]
    for line in applied:
        cluster.type_in(line, typed_in)
    (first,) = _operators(cluster)
    eventually(lambda: _running(cluster, "baseline"), "baseline", seconds=LIFE_SECONDS, every_seconds=0.5)
    install_chart(cluster, "--set", "operator.logLevel=debug")
    killed = _kill_a_pod_in_training(cluster, work)
    eventually(lambda: _looked_at(cluster)["phase"] == "Published", seconds=LIFE_SECONDS, every_seconds=1)
    cluster.type_in(waited, typed_in)
    (last,) = _operators(cluster)
    resource = cluster.plane.api.get("DomainAdaptation", NAME, NAMESPACE)
    return Life(cluster, resource, work, models, killed, (first, last))


def _operators(cluster: Cluster) -> list[str]:
    return [str(pod["metadata"]["name"]) for pod in cluster.pods(OPERATORS)]


def _running(cluster: Cluster, stage: str, index: int = 0) -> dict[str, Any]:
    """The running pod of a stage."""
    labels = f"dapt.dev/stage={stage},batch.kubernetes.io/job-completion-index={index}"
    found = [pod for pod in cluster.pods(NAMESPACE, labels) if pod["status"].get("phase") == "Running"]
    assert found, _looked_at(cluster)
    return found[0]


def _looked_at(cluster: Cluster) -> dict[str, Any]:
    """The adaptation's status; it is no use to wait for a person here."""
    status: dict[str, Any] = cluster.plane.api.get("DomainAdaptation", NAME, NAMESPACE).get("status", {})
    stalled = [
        item for item in status.get("conditions", []) if (item["type"], item["status"]) == ("Stalled", "True")
    ]
    if stalled:
        pytest.fail(f"it stalled: {stalled}")
    return {name: status.get(name) for name in ("phase", "stages", "conditions")}


def _kill_a_pod_in_training(cluster: Cluster, work: Path) -> str:
    """SIGKILL to every process of the second pod, as soon as the first checkpoint is complete."""

    pod = eventually(
        lambda: _running(cluster, "pretrain", 1), "the gang", seconds=LIFE_SECONDS, every_seconds=0.5
    )
    checkpoint = work / "stages" / "pretrain-a1" / "try-1" / f"checkpoint-{CHECKPOINTS[0]}.json"
    eventually(checkpoint.is_file, str(checkpoint), seconds=POD_SECONDS, every_seconds=0.01)
    pids = cluster.node.processes_of(pod["metadata"]["uid"])
    assert len(pids) >= 2, "the agent and its rank"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return str(pod["metadata"]["name"])


def test_the_model_is_published_although_a_pod_was_killed(life: Life) -> None:
    assert life.conditions["Finished"] == ("True", "Published"), life.resource["status"]
    assert life.conditions["Ready"] == ("True", "Published")
    assert life.resource["status"]["output"]["destination"] == "pvc://models/clinical"


def test_the_gang_went_on_from_its_checkpoint(life: Life) -> None:
    stages = {item["kind"]: (item["try"], item["state"]) for item in life.resource["status"]["stages"]}
    assert stages.pop("pretrain") == (2, "Succeeded")
    assert set(stages.values()) == {(1, "Succeeded")}
    assert life.resource["status"]["usage"]["restarts"] == 1
    report = life.pretraining(2)
    assert [point["step"] for point in report["curve"]] == list(range(1, STEPS + 1))
    tries = {row["step"]: row["try_number"] for row in report["facts"]["checkpoints"]}
    assert tuple(tries) == CHECKPOINTS
    assert (tries[CHECKPOINTS[0]], tries[CHECKPOINTS[-1]]) == (1, 2)


def test_a_new_operator_took_over_in_the_middle(life: Life) -> None:
    first, last = life.operators
    assert first != last, "no stage had a second try for it: the test above"


def test_the_operator_logs_no_error(life: Life) -> None:
    said = life.cluster.kubectl("logs", life.operators[1], f"--namespace={OPERATORS}").splitlines()
    assert [line for line in said if json.loads(line)["level"] in ("error", "critical")] == []


def test_the_killed_pod_was_one_of_two(life: Life) -> None:
    pods = life.cluster.pods(NAMESPACE, "dapt.dev/stage=pretrain")
    ends = {pod["metadata"]["name"]: _exit_code(pod) for pod in pods}
    # Where the node reports the end of the other pod first, the operator ends this one as its peer, and it is gone.
    assert ends.get(life.killed, 137) == 137
    assert list(ends.values()).count(0) == 2, ends


def test_failed_gang_is_reported_in_a_warning_event(life: Life) -> None:
    events = life.cluster.plane.api.list("Event", NAMESPACE, fields="involvedObject.kind=DomainAdaptation")
    warnings = [(item["reason"], item["message"]) for item in events if item["type"] == "Warning"]
    said = "the container ended with exit code 137 (no termination message)"
    assert warnings == [("StageFailed", f"pretrain failed (Infrastructure): {said}")]


def _exit_code(pod: dict[str, Any]) -> int:
    return int(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"])


def test_the_losses_are_those_of_the_local_run(life: Life, inputs: Path) -> None:
    manifest = laptop.write_local_manifest(inputs)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from dapt_operator.cli import main; main()",
            "run",
            manifest.name,
            "--no-report",
        ],
        cwd=inputs,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    local = pretraining_report(inputs / "runs" / NAME / "work", 1)
    there = life.pretraining(2)
    measured = ("step", "loss_nats", "gradient_norm", "learning_rate", "tokens")
    assert [[point[name] for name in measured] for point in there["curve"]] == [
        [point[name] for name in measured] for point in local["curve"]
    ]
    assert [row | {"try_number": 1} for row in there["facts"]["checkpoints"]] == local["facts"]["checkpoints"]
    weights = "model.safetensors"
    assert (life.models / NAME / weights).read_bytes() == (inputs / "out" / weights).read_bytes()


def test_the_published_model_loads(life: Life) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = life.models / NAME
    tokens = AutoTokenizer.from_pretrained(folder)("the pump cools the boiler", return_tensors="pt")
    logits = AutoModelForCausalLM.from_pretrained(folder)(**tokens).logits
    assert bool(torch.isfinite(logits).all())
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir()), "others serve it"


def test_kubectl_shows_how_it_stands(life: Life) -> None:
    heading, row = life.cluster.kubectl("get", "da", f"--namespace={NAMESPACE}").splitlines()
    columns = ["NAME", "READY", "PHASE", "REASON", "STAGE", "PROGRESS", "ETA", "FORGETTING", "GAIN", "AGE"]
    assert heading.split() == columns
    status, cells = life.resource["status"], row.split()
    assert cells[:6] == [NAME, "True", "Published", "Published", "publish", "1"]
    assert cells[-3:-1] == [f"{status['forgetting']}", f"{status['gain']}"]


def test_nothing_of_the_frameworks_is_written_to_the_resource(life: Life) -> None:
    metadata = life.resource["metadata"]
    assert set(metadata["annotations"]) == {"kubectl.kubernetes.io/last-applied-configuration"}
    assert "finalizers" not in metadata


def test_deleting_the_adaptation_takes_everything_but_the_model(life: Life) -> None:
    life.cluster.kubectl("delete", "da", NAME, f"--namespace={NAMESPACE}")
    api = life.cluster.plane.api

    def is_gone() -> bool:
        left = [
            item["metadata"]["name"]
            for kind in ("Job", "Pod", "ConfigMap", "Service", "Secret", "PersistentVolumeClaim")
            for item in api.list(kind, NAMESPACE, labels="dapt.dev/adaptation")
        ]
        assert left == []
        return True

    eventually(is_gone, "the end of all its objects", seconds=POD_SECONDS, every_seconds=0.5)
    assert (life.models / NAME / "model.safetensors").is_file()
