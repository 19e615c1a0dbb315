"""The chart renders restricted pods, a command line that parses, and objects that refer to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from dapt_contract.version import PRODUCT_VERSION
from dapt_operator.cli.app import app

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "dapt"
VALUES_FILES = sorted(path.stem for path in (Path(__file__).parent / "values").glob("*.yaml"))
each_file = pytest.mark.parametrize("name", VALUES_FILES)
Render = Callable[..., Any]


def operators_pod(objects: Any) -> dict[str, Any]:
    return objects.one("Deployment")["spec"]["template"]


def container_of(objects: Any) -> dict[str, Any]:
    (container,) = operators_pod(objects)["spec"]["containers"]
    return container


@each_file
def test_helm_lint_reports_nothing(helm: Any, name: str) -> None:
    done = helm(
        "lint", "--strict", "--quiet", CHART, "--values", ROOT / "tests/chart/values" / f"{name}.yaml"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_versions_equal_the_product_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (PRODUCT_VERSION, PRODUCT_VERSION)


@each_file
def test_the_operators_pod_keeps_the_restricted_standard(render: Render, name: str) -> None:
    spec = operators_pod(render(name))["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("hostPort" not in port for port in container["ports"])
    allowed = {"configMap", "emptyDir", "projected", "secret", "persistentVolumeClaim"}
    assert all(set(volume) - {"name"} <= allowed for volume in spec["volumes"])


def test_a_single_replica_ends_before_the_next_one_starts(render: Render) -> None:
    objects = render("namespaces")
    spec = objects.one("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert "topologySpreadConstraints" not in spec["template"]["spec"]
    assert not objects.of("PodDisruptionBudget")


def test_several_replicas_are_spread_and_never_all_drained(render: Render) -> None:
    objects = render("everything")
    spec = objects.one("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (2, {"type": "RollingUpdate"})
    selector = spec["selector"]["matchLabels"]
    spread = spec["template"]["spec"]["topologySpreadConstraints"]
    assert [item["topologyKey"] for item in spread] == [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    ]
    # A cluster of one node still gets both.
    assert {item["whenUnsatisfiable"] for item in spread} == {"ScheduleAnyway"}
    assert all(item["labelSelector"]["matchLabels"] == selector for item in spread)
    budget = objects.one("PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, selector)


@each_file
def test_the_operator_leaves_a_lost_node_soon(render: Render, name: str) -> None:
    tolerations = operators_pod(render(name))["spec"]["tolerations"]
    seconds = {item["key"]: item["tolerationSeconds"] for item in tolerations if "tolerationSeconds" in item}
    assert seconds == {"node.kubernetes.io/unreachable": 30, "node.kubernetes.io/not-ready": 30}


def test_a_platform_may_assign_the_user_ids(render: Render) -> None:
    ids = "podSecurityContext.runAsUser=null,podSecurityContext.runAsGroup=null"
    pod = operators_pod(render("whole-cluster", ids))["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = operators_pod(render("whole-cluster", "podSecurityContext=null,containerSecurityContext=null"))[
        "spec"
    ]
    assert "securityContext" not in pod
    assert "securityContext" not in pod["containers"][0]


@each_file
def test_the_operators_command_line_parses(render: Render, name: str) -> None:
    container = container_of(render(name))
    words: list[str] = [*container["command"], *container["args"]]
    program, command, *rest = words
    assert program == "dapt"
    typer.main.get_command(app).commands[command].make_context(command, rest)  # type: ignore[attr-defined]


def test_the_operator_gets_its_instance_lease_and_namespaces(render: Render) -> None:
    arguments = container_of(render("namespaces", release="blue", namespace="tools"))["args"]
    assert arguments[:5] == [
        "--namespace=health",
        "--namespace=law",
        "--instance=tools/blue",
        "--lease-namespace=tools",
        "--lease-name=blue-dapt",
    ]


@each_file
def test_probes_and_monitors_name_existing_ports(render: Render, name: str) -> None:
    objects = render(name)
    container = container_of(objects)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = [
        container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    ]
    assert set(probes) == {"http"}
    assert f"--port={ports['http']}" in container["args"]
    (port,) = objects.one("Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (ports["http"], "http")


@each_file
def test_selectors_select_the_operators_pod_and_no_other(render: Render, name: str) -> None:
    objects = render(name)
    labels = operators_pod(objects)["metadata"]["labels"]
    selectors = [
        objects.one("Deployment")["spec"]["selector"]["matchLabels"],
        objects.one("Service")["spec"]["selector"],
        *(
            item["spec"]["podSelector"]["matchLabels"]
            for item in objects.of("NetworkPolicy")
            if item["metadata"]["namespace"] == "dapt-system"
        ),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert (
        labels["app.kubernetes.io/managed-by"] == "Helm"
    )  # training pods say dapt: policies tell them apart


def test_labels_of_the_user_are_added(render: Render) -> None:
    labels = operators_pod(render("everything"))["metadata"]["labels"]
    assert labels["team"] == "platform"
    assert labels["app.kubernetes.io/instance"] == "dapt"


def test_the_image_is_named_by_tag_or_digest(render: Render) -> None:
    digest = "sha256:" + "0" * 64
    assert container_of(render())["image"] == f"registry.example/dapt-operator:{PRODUCT_VERSION}"
    assert container_of(render("everything"))["image"] == "registry.example/team/dapt-operator:0.2.0-rc.1"
    given = render("everything", f'image.digest="{digest}"')
    assert container_of(given)["image"] == f"registry.example/team/dapt-operator@{digest}"


def test_only_the_operators_pod_has_a_token(render: Render) -> None:
    objects = render()
    assert objects.one("ServiceAccount")["automountServiceAccountToken"] is False
    assert operators_pod(objects)["spec"]["automountServiceAccountToken"] is True


def test_optional_objects_are_off_by_default(render: Render) -> None:
    kinds = {item["kind"] for item in render()}
    assert kinds == {
        "ServiceAccount", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
        "Service", "Deployment", "NetworkPolicy",
    }  # fmt: skip


def test_monitors_keep_the_labels_of_the_series(render: Render) -> None:
    objects = render("everything")
    monitor = objects.one("PodMonitor", "adapter")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {
        "port": "http",
        "path": "/metrics",
        "interval": "15s",
        "scrapeTimeout": "10s",
        "honorLabels": True,
    }
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    trainers = objects.one("PodMonitor", "adapter-trainers")
    assert trainers["spec"]["namespaceSelector"] == {"matchNames": ["health"]}
    limits = ("sampleLimit", "labelLimit", "labelNameLengthLimit", "labelValueLengthLimit")
    assert {name: trainers["spec"][name] for name in limits} == dict(
        zip(limits, (200, 40, 256, 1024), strict=True)
    )
    (endpoint_of_trainers,) = trainers["spec"]["podMetricsEndpoints"]
    assert endpoint_of_trainers["scrapeTimeout"] == "10s"
    often = render("everything", 'metrics.interval="5s"').one("PodMonitor", "adapter-trainers")
    assert often["spec"]["podMetricsEndpoints"][0]["scrapeTimeout"] == "5s"
    service = render("everything", 'metrics.monitor="ServiceMonitor"').one("ServiceMonitor")
    assert service["spec"]["endpoints"] == [endpoint]


def test_two_releases_share_only_the_definitions(render: Render) -> None:
    def names(objects: Any) -> set[tuple[str, str, str]]:
        return {
            (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
            for item in objects
            if item["kind"] != "CustomResourceDefinition"
        }

    one = names(render("namespaces", namespace="one"))
    assert one & names(render("namespaces", namespace="two")) == set()
    assert one & names(render("namespaces", release="other", namespace="one")) == set()


def test_the_definitions_are_the_generated_ones_and_stay(render: Render) -> None:
    rendered = {item["metadata"]["name"]: item for item in render().of("CustomResourceDefinition")}
    generated = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    for definition in generated:
        found = rendered.pop(definition["metadata"]["name"])
        assert found["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert found == definition, "charts/dapt/files is not crds/: run `make crds`"
    assert rendered == {}


def test_the_definitions_can_be_left_to_another_release(render: Render) -> None:
    assert render("whole-cluster", "crds.install=false").of("CustomResourceDefinition") == []
