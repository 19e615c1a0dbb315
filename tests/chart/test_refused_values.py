# ruff: noqa: E501 - one row a line
"""values.schema.json and templates/_checks.tpl refuse what Kubernetes would, each value by its name.

Helm reports all bad values at once, so a few commands judge them all: each takes one bad value of every path, and every
bad item of every list.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.chart_values import UNUSUAL

CHART = Path(__file__).parents[2] / "charts" / "dapt"
NOT_MATCHED = "does not match pattern"
LONG_LABEL = "a" * 64

SCALARS: list[tuple[str, Any, str]] = [
    ("image.repository", "", "minLength: got 0, want 1"),
    ("image.repository", "registry.example/dapt:1.0", NOT_MATCHED),
    ("image.repository", "registry.example/Dapt", NOT_MATCHED),
    ("image.repository", "registry.example/dapt operator", NOT_MATCHED),
    ("image.repository", "https://registry.example/dapt", NOT_MATCHED),
    ("image.tag", "-latest", NOT_MATCHED),
    ("image.tag", "a" * 129, NOT_MATCHED),
    ("image.tag", 1.2, "got number, want string"),
    ("image.digest", "0" * 64, NOT_MATCHED),
    ("image.pullPolicy", "always", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
    ("nameOverride", "Dapt", NOT_MATCHED),
    ("nameOverride", "2nd", NOT_MATCHED),
    ("fullnameOverride", "2nd", NOT_MATCHED),
    ("fullnameOverride", "a" * 53, "maxLength: got 53, want 52"),
    ("fullnameOverride", "dapt.operator", NOT_MATCHED),
    ("instance", "dapt system", NOT_MATCHED),
    ("replicas", -1, "minimum: got -1, want 1"),
    ("replicas", 1.5, "got number, want integer"),
    ("replicas", "2", "got string, want integer"),
    ("podDisruptionBudget.maxUnavailable", 0, "minimum: got 0, want 1"),
    ("podDisruptionBudget.maxUnavailable", "0%", NOT_MATCHED),
    ("podDisruptionBudget.maxUnavailable", "half", NOT_MATCHED),
    ("port", 0, "minimum: got 0, want 1,024"),
    ("port", 70000, "maximum: got 70,000, want 65,535"),
    ("port", "http", "got string, want integer"),
    ("serviceAccount.name", "Dapt", NOT_MATCHED),
    ("serviceAccount.name", "dapt..operator", NOT_MATCHED),
    ("priorityClassName", "Very High", NOT_MATCHED),
    ("priorityClassName", "-high", NOT_MATCHED),
    ("terminationGracePeriodSeconds", -1, "minimum: got -1, want 5"),
    ("dnsPolicy", "clusterFirst", "value must be one of '', 'ClusterFirst', 'ClusterFirstWithHostNet', 'Default', 'None'"),
    ("metrics.interval", "30", NOT_MATCHED),
    ("metrics.interval", "0s", NOT_MATCHED),
    ("metrics.interval", "-5s", NOT_MATCHED),
    ("metrics.interval", "1h30", NOT_MATCHED),
    ("metrics.interval", 30, "got number, want string"),
    ("alerts.runbooks", "https://runbooks.example/dapt", NOT_MATCHED),
    ("alerts.runbooks", "https://runbooks.example/a\"b/", NOT_MATCHED),
    ("alerts.runbooks", "", NOT_MATCHED),
    ("operator.resyncSeconds", "10m", "got string, want integer"),
    ("networkPolicy.trainerPorts.progress", 70000, "maximum: got 70,000, want 65,535"),
    ("resources.requests.cpu", -1, "minimum: got -1, want 0"),
    ("resources.requests.cpu", "-100m", NOT_MATCHED),
    ("resources.requests.cpu", "2 cores", NOT_MATCHED),
    ("resources.requests.cpu", "1,5", NOT_MATCHED),
    ("resources.requests.cpu", True, "got boolean, want number or string"),
    ("resources.requests.memory", "512mb", NOT_MATCHED),
    ("resources.requests.memory", "512MB", NOT_MATCHED),
    ("resources.requests.memory", "512m", NOT_MATCHED),
    ("resources.requests.memory", "", NOT_MATCHED),
    ("resources.limits.memory", "1gi", NOT_MATCHED),
    ("resources.limits.ephemeral-storage", "lots", NOT_MATCHED),
]  # fmt: skip
"""Path, a bad value, and what Helm says of it after the path."""

BLOCKS: list[tuple[str, Any, str, str]] = [
    ("commonLabels", {"team name": "a"}, "", f"'team name' {NOT_MATCHED}"),
    ("commonLabels", {"Example.com/team": "a"}, "", f"'Example.com/team' {NOT_MATCHED}"),
    ("podLabels", {LONG_LABEL: "a"}, "", f"'{LONG_LABEL}' {NOT_MATCHED}"),
    ("podLabels", {"team": LONG_LABEL}, "/team", NOT_MATCHED),
    ("podLabels", {"team": "the platform"}, "/team", NOT_MATCHED),
    ("podLabels", {"team": True}, "/team", "got boolean, want string"),
    ("podAnnotations", {"a/b/c": "x"}, "", f"'a/b/c' {NOT_MATCHED}"),
    ("podAnnotations", {"note": 1}, "/note", "got number, want string"),
    ("deploymentAnnotations", {"": "x"}, "", f"'' {NOT_MATCHED}"),
    ("serviceAccount.annotations", {"note": None, "role": 1}, "/role", "got number, want string"),
    ("nodeSelector", {"zone": "-a"}, "/zone", NOT_MATCHED),
    ("metrics.labels", {"release": "my release"}, "/release", NOT_MATCHED),
    ("alerts.labels", {"release": "my release"}, "/release", NOT_MATCHED),
    ("dashboards.labels", {"grafana dashboard": "1"}, "", f"'grafana dashboard' {NOT_MATCHED}"),
    ("dashboards.annotations", {"grafana_folder": 7}, "/grafana_folder", "got number, want string"),
    ("podSecurityContext", {"runAsUser": -1}, "/runAsUser", "minimum: got -1, want 0"),
    ("podSecurityContext", {"runAsUser": "1000"}, "/runAsUser", "got string, want null or integer"),
    ("podSecurityContext", {"runAsUsr": 1000}, "", "additional properties 'runAsUsr' not allowed"),
    ("podSecurityContext", {"fsGroupChangePolicy": "Never"}, "/fsGroupChangePolicy", "value must be one of"),
    ("podSecurityContext", {"seccompProfile": {"type": "Default"}}, "/seccompProfile/type", "value must be one of"),
    ("podSecurityContext", {"seccompProfile": {"type": "Localhost"}}, "/seccompProfile", "missing property 'localhostProfile'"),
    ("containerSecurityContext", {"capabilities": {"add": "NET_ADMIN"}}, "/capabilities/add", "got string, want array"),
    ("containerSecurityContext", {"capabilities": {"add": ["net admin"]}}, "/capabilities/add/0", NOT_MATCHED),
    ("containerSecurityContext", {"readOnlyRootFilesystem": "yes"}, "/readOnlyRootFilesystem", "got string, want null or boolean"),
    ("containerSecurityContext", {"procMount": "masked"}, "/procMount", "value must be one of"),
    ("affinity", {"nodeAffinty": {}}, "", "additional properties 'nodeAffinty' not allowed"),
    (
        "affinity",
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
        "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms",
        "minItems: got 0, want 1",
    ),
    (
        "affinity",
        {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101, "podAffinityTerm": {"topologyKey": "a"}}]}},
        "/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution/0/weight",
        "maximum: got 101, want 100",
    ),
    (
        "affinity",
        {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}},
        "/podAffinity/requiredDuringSchedulingIgnoredDuringExecution/0",
        "missing property 'topologyKey'",
    ),
    ("dnsConfig", {"nameservers": ["dns.example"]}, "/nameservers/0", NOT_MATCHED),
    ("dnsConfig", {"nameservers": ["10.0.0.1"] * 4}, "/nameservers", "maxItems: got 4, want 3"),
    ("dnsConfig", {"searches": ["Example com"]}, "/searches/0", NOT_MATCHED),
    ("dnsConfig", {"options": [{"value": "2"}]}, "/options/0", "missing property 'name'"),
]  # fmt: skip
"""Path, a bad block, where in the block Helm points to, and what it says."""

ITEMS: list[tuple[str, Any, str, str]] = [
    ("namespaces", "kube_system", "", NOT_MATCHED),
    ("namespaces", "a" * 64, "", "maxLength: got 64, want 63"),
    ("imagePullSecrets", {}, "", "missing property 'name'"),
    ("imagePullSecrets", {"name": "Login"}, "/name", NOT_MATCHED),
    ("imagePullSecrets", "login", "", "got string, want object"),
    ("operator.extraEnv", {"value": "x"}, "", "missing property 'name'"),
    ("operator.extraEnv", {"name": "1A", "value": "x"}, "/name", NOT_MATCHED),
    ("operator.extraEnv", {"name": "A=B", "value": "x"}, "/name", NOT_MATCHED),
    ("operator.extraEnv", {"name": "A", "value": 1}, "/value", "got number, want string"),
    ("operator.extraEnv", {"name": "A", "valueFrom": {}}, "/valueFrom", "minProperties: got 0, want 1"),
    ("operator.extraEnv", {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}, "/valueFrom/secretKeyRef", "missing property 'key'"),
    ("operator.extraEnvFrom", {"secretRef": {"name": "My_Secret"}}, "/secretRef/name", NOT_MATCHED),
    ("operator.extraEnvFrom", {"prefix": "a b"}, "/prefix", NOT_MATCHED),
    ("operator.extraVolumes", {"configMap": {"name": "a"}}, "", "missing property 'name'"),
    ("operator.extraVolumes", {"name": "CA", "configMap": {"name": "a"}}, "/name", NOT_MATCHED),
    ("operator.extraVolumes", {"name": "a", "configmap": {"name": "a"}}, "", "additional properties 'configmap' not allowed"),
    ("operator.extraVolumes", {"name": "a", "secret": {"name": "a"}}, "/secret", "missing property 'secretName'"),
    ("operator.extraVolumes", {"name": "a", "emptyDir": {}, "nfs": {"server": "a", "path": "/"}}, "", "maxProperties: got 3, want 2"),
    ("operator.extraVolumes", {"name": "a", "hostPath": {"path": "/a/../b"}}, "/hostPath/path", NOT_MATCHED),
    ("operator.extraVolumes", {"name": "a", "emptyDir": {"sizeLimit": "1 GB"}}, "/emptyDir/sizeLimit", NOT_MATCHED),
    ("operator.extraVolumes", {"name": "a", "configMap": {"name": "a", "defaultMode": 999}}, "/configMap/defaultMode", "maximum: got 999, want 511"),
    ("operator.extraVolumeMounts", {"name": "a"}, "", "missing property 'mountPath'"),
    ("operator.extraVolumeMounts", {"name": "a", "mountPath": "C:/a"}, "/mountPath", NOT_MATCHED),
    ("operator.extraVolumeMounts", {"name": "a", "mountPath": "/a", "subPath": "../b"}, "/subPath", NOT_MATCHED),
    ("operator.extraVolumeMounts", {"name": "a", "mountPath": "/a", "mountPropagation": "Both"}, "/mountPropagation", "value must be one of"),
    ("tolerations", {"key": "a", "operator": "Exist"}, "/operator", "value must be one of 'Exists', 'Equal'"),
    ("tolerations", {"key": "a", "effect": "NoRun"}, "/effect", "value must be one of"),
    ("tolerations", {"key": "a", "operator": "Exists", "value": "x"}, "/value", "value must be ''"),
    ("tolerations", {"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5}, "/effect", "value must be 'NoExecute'"),
    ("tolerations", {"value": "x"}, "", "missing property 'operator'"),
    ("tolerations", {"key": "a b", "operator": "Exists"}, "/key", NOT_MATCHED),
    ("topologySpreadConstraints", {"maxSkew": 0, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}, "/maxSkew", "minimum: got 0, want 1"),
    ("topologySpreadConstraints", {"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "Ignore"}, "/whenUnsatisfiable", "value must be one of"),
    ("topologySpreadConstraints", {"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}, "", "missing property 'topologyKey'"),
    ("topologySpreadConstraints", {"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2}, "/whenUnsatisfiable", "value must be 'DoNotSchedule'"),
    ("hostAliases", {"ip": "10.0.0.256", "hostnames": ["a"]}, "/ip", NOT_MATCHED),
    ("hostAliases", {"ip": "10.0.0.1", "hostnames": ["a_b"]}, "/hostnames/0", NOT_MATCHED),
    ("hostAliases", {"hostnames": ["a"]}, "", "missing property 'ip'"),
    ("networkPolicy.apiServer.cidrs", "10.0.0.0/33", "", NOT_MATCHED),
    ("networkPolicy.apiServer.cidrs", "300.0.0.0/8", "", NOT_MATCHED),
    ("networkPolicy.apiServer.cidrs", "fd00:::1/64", "", NOT_MATCHED),
    ("networkPolicy.apiServer.cidrs", "fd00::/129", "", NOT_MATCHED),
    ("networkPolicy.apiServer.cidrs", "::::/0", "", NOT_MATCHED),
    ("networkPolicy.apiServer.ports", 0, "", "minimum: got 0, want 1"),
    ("networkPolicy.apiServer.ports", "https", "", "got string, want integer"),
    ("networkPolicy.trainerNamespaces", "Health", "", NOT_MATCHED),
    ("networkPolicy.metricsFrom", {}, "", "minProperties: got 0, want 1"),
    ("networkPolicy.metricsFrom", {"namespace": "monitoring"}, "", "additional properties 'namespace' not allowed"),
    ("networkPolicy.metricsFrom", {"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}, "", "maxProperties: got 2, want 1"),
    ("networkPolicy.metricsFrom", {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "/podSelector/matchExpressions/0", "missing property 'values'"),
    ("networkPolicy.metricsFrom", {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}, "/podSelector/matchExpressions/0/operator", "value must be one of"),
    ("networkPolicy.egress", {"ports": [{"port": 70000}]}, "/ports/0/port", "maximum: got 70,000, want 65,535"),
    ("networkPolicy.egress", {"ports": [{"port": "a-very-long-port-name"}]}, "/ports/0/port", "maxLength: got 21, want 15"),
    ("networkPolicy.egress", {"ports": [{"port": 53, "protocol": "udp"}]}, "/ports/0/protocol", "value must be one of 'TCP', 'UDP', 'SCTP'"),
    ("networkPolicy.egress", {"ports": [{"endPort": 90}]}, "/ports/0", "missing property 'port'"),
    ("networkPolicy.egress", {"ports": [{"port": "https", "endPort": 90}]}, "/ports/0/port", "got string, want integer"),
    ("networkPolicy.egress", {"from": []}, "", "additional properties 'from' not allowed"),
    ("networkPolicy.operatorEgress", {"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}, "/to/0/ipBlock/cidr", NOT_MATCHED),
]  # fmt: skip
"""Path of a list, a bad item, where in the item Helm points to, and what it says."""

TOGETHER: list[tuple[dict[str, Any], str]] = [
    (
        {"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "900M"}}},
        "resources.requests.memory: 1Gi is above resources.limits.memory, which is 900M; raise the limit or lower the request",
    ),
    (
        {"resources": {"requests": {"cpu": 1.5}, "limits": {"cpu": "1200m"}}},
        "resources.requests.cpu: 1.5 is above resources.limits.cpu, which is 1200m; raise the limit or lower the request",
    ),
    (
        {"podSecurityContext": {"runAsUser": 0}},
        "podSecurityContext: runAsUser is 0 and runAsNonRoot is true, so the pod would not start; set another user",
    ),
    (
        {"containerSecurityContext": {"privileged": True}},
        "containerSecurityContext: privileged is true and allowPrivilegeEscalation is false, which Kubernetes refuses;"
        " set privileged to false",
    ),
    ({"dnsPolicy": "None"}, "dnsPolicy: None needs dnsConfig.nameservers; list one at least"),
    (
        {"podLabels": {"app.kubernetes.io/name": "other"}},
        'podLabels: "app.kubernetes.io/name" is set by the chart or by commonLabels already; remove it',
    ),
    (
        {"commonLabels": {"team": "a"}, "podLabels": {"team": "b"}},
        'podLabels: "team" is set by the chart or by commonLabels already; remove it',
    ),
    (
        {"operator": {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}},
        "operator.extraEnv[1]: A is set twice; remove one",
    ),
    (
        {
            "operator": {
                "extraEnv": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]
            }
        },
        "operator.extraEnv[0]: A has value and valueFrom; remove one",
    ),
    (
        {"operator": {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]}},
        'operator.extraVolumes[0]: a volume "tmp" is there already; choose another name',
    ),
    (
        {"operator": {"extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}]}},
        'operator.extraVolumeMounts[0]: there is no volume "ca"; add it to operator.extraVolumes',
    ),
    (
        {"operator": {"extraVolumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}},
        "operator.extraVolumeMounts[0]: something is mounted at /tmp already; choose another path",
    ),
    (
        {"networkPolicy": {"egress": [{"ports": [{"port": 90, "endPort": 80}]}]}},
        "networkPolicy.egress[0]: endPort 80 is below port 90; exchange them",
    ),
    (
        {"networkPolicy": {"apiServer": {"cidrs": ["10.96.0.1/12"]}}},
        "networkPolicy.apiServer.cidrs: 10.96.0.1/12 has bits set beyond its prefix; write the first address of the block",
    ),
]
"""Values that a schema takes one by one, and the chart's sentence about them together."""


def put(values: dict[str, Any], path: str, value: Any) -> None:
    *blocks, name = path.split(".")
    for block in blocks:
        values = values.setdefault(block, {})
    values[name] = value


def pointer(path: str) -> str:
    return "/" + path.replace(".", "/")


def in_rounds() -> list[tuple[dict[str, Any], list[tuple[str, str]]]]:
    """Return values files with at most one bad value of a path each, and the pointer and the text that each must get."""
    by_path: dict[str, list[tuple[Any, str, str]]] = {}
    for path, value, text in SCALARS:
        by_path.setdefault(path, []).append((value, "", text))
    for path, value, where, text in BLOCKS:
        by_path.setdefault(path, []).append((value, where, text))
    rounds: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
        ({}, []) for _ in range(max(map(len, by_path.values())))
    ]
    for path, cases in by_path.items():
        for (values, expected), (value, where, text) in zip(rounds, cases, strict=False):
            put(values, path, value)
            expected.append((pointer(path) + where, text))
    values, expected = rounds[0]
    lists: dict[str, list[Any]] = {}
    for path, value, where, text in ITEMS:
        lists.setdefault(path, []).append(value)
        expected.append((f"{pointer(path)}/{len(lists[path]) - 1}{where}", text))
    for path, items in lists.items():
        put(values, path, items)
    return rounds


@pytest.fixture
def template(helm: Any, tmp_path: Path) -> Callable[..., Any]:
    """Renders the chart with these values."""

    def run(values: dict[str, Any], command: str = "template", release: str = "dapt") -> Any:
        path = tmp_path / "values.yaml"
        path.write_text(json.dumps(values))
        words = ["template", release, CHART] if command == "template" else ["lint", "--strict", CHART]
        return helm(*words, "--kube-version", "1.31.0", "--values", path)

    return run


def missing_complaints(output: str, expected: list[tuple[str, str]]) -> list[tuple[str, str]]:
    lines = output.splitlines()

    def is_reported(where: str, text: str) -> bool:
        if any(f"at '{where}'" in line and text in line for line in lines):
            return True
        # The name of a key that is refused stands below the line that names the block.
        return f"at '{where}': 'allOf' failed" in output and f"at '': {text}" in output

    return [item for item in expected if not is_reported(*item)]


def test_every_bad_value_is_refused_by_its_name(template: Callable[..., Any]) -> None:
    assert len(SCALARS) + len(BLOCKS) + len(ITEMS) + len(TOGETHER) >= 130
    for values, expected in in_rounds():
        done = template(values)
        assert done.returncode != 0
        assert missing_complaints(done.stderr, expected) == []


def test_lint_refuses_bad_values_as_template_does(template: Callable[..., Any]) -> None:
    values, expected = in_rounds()[0]
    done = template(values, "lint")
    assert done.returncode != 0
    assert missing_complaints(done.stdout + done.stderr, expected) == []


@pytest.mark.parametrize(("values", "sentence"), TOGETHER, ids=[text.split(":")[0] for _, text in TOGETHER])
def test_values_that_do_not_fit_together_are_refused(
    template: Callable[..., Any], values: dict[str, Any], sentence: str
) -> None:
    done = template(values)
    assert done.returncode != 0
    assert f"these values do not fit:\n- {sentence}\n" in done.stderr


def test_problems_of_several_values_come_at_once(template: Callable[..., Any]) -> None:
    values = {"dnsPolicy": "None", "podSecurityContext": {"runAsUser": 0}}
    done = template(values, release="2dapt")
    assert done.stderr.count("\n- ") == 3
    assert '- release name: "2dapt" begins the names of Services, which begin with a letter;' in done.stderr


def test_unusual_good_values_render(template: Callable[..., Any]) -> None:
    done = template(UNUSUAL)
    assert done.returncode == 0, done.stderr
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    assert {item["metadata"]["labels"]["example.com/cost-centre"] for item in objects} == {"4711"}
    pod = next(item for item in objects if item["kind"] == "Deployment")["spec"]["template"]
    for name in ("dnsPolicy", "dnsConfig", "hostAliases", "priorityClassName", "affinity"):
        assert pod["spec"][name] == UNUSUAL[name]
    assert pod["spec"]["tolerations"][-3:] == UNUSUAL["tolerations"]
    assert pod["metadata"]["labels"].items() >= UNUSUAL["podLabels"].items()
    budget = next(item for item in objects if item["kind"] == "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == "50%"
