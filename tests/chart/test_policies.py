"""The NetworkPolicies allow what a run needs and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dapt_operator.api import names
from dapt_operator.launchers.render.environment import ONLINE_KINDS

Render = Callable[..., Any]
GOLDEN = Path(__file__).parents[1] / "golden"
OPERATOR = {"app.kubernetes.io/name": "dapt", "app.kubernetes.io/instance": "dapt"}


@pytest.fixture(scope="module", params=["IndexedJob", "JobSet"])
def trainer_labels(request: pytest.FixtureRequest) -> dict[str, str]:
    """Labels of a pod as a launcher writes them."""
    path = GOLDEN / f"{request.param}-two-nodes-of-eight-gpus.yaml"
    (holder,) = [item for item in yaml.safe_load_all(path.read_text()) if item["kind"] in ("Job", "JobSet")]
    if request.param == "JobSet":
        holder = holder["spec"]["replicatedJobs"][0]["template"]
    return holder["spec"]["template"]["metadata"]["labels"]


DNS = {"ports": [{"port": port, "protocol": protocol} for port in (53, 5353) for protocol in ("UDP", "TCP")]}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Kubernetes' label selector, with the operators that the chart uses."""
    judged = {
        "Exists": lambda item: item["key"] in labels,
        "NotIn": lambda item: labels.get(item["key"]) not in item["values"],
        "In": lambda item: labels.get(item["key"]) in item["values"],
    }
    wanted = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(
        judged[item["operator"]](item) for item in selector.get("matchExpressions") or []
    )


def test_the_operator_may_reach_only_dns_the_api_server_and_progress(
    render: Render, trainer_labels: dict[str, str]
) -> None:
    spec = render("everything").one("NetworkPolicy", "adapter")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    dns, api_server, progress = spec["egress"]
    assert dns == DNS
    assert api_server == {"ports": [{"port": 6443}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}
    assert progress["ports"] == [{"port": 9500}]
    (peer,) = progress["to"]
    assert selects(peer["podSelector"], trainer_labels)
    assert not selects(peer["podSelector"], OPERATOR)
    assert selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": "health"})
    assert not selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": "law"})


def test_policies_are_there_by_default_and_limit_neither_the_operators_way_out_nor_who_scrapes(
    render: Render,
) -> None:
    sets = ('networkPolicy.trainerNamespaces=["ml"]',)
    policies = {
        item["metadata"]["name"]: item["spec"] for item in render("whole-cluster", *sets).of("NetworkPolicy")
    }
    assert len(policies) == 4
    operator = min(policies, key=len)  # the others have a suffix
    assert policies[operator]["policyTypes"] == ["Ingress"]
    assert "egress" not in policies[operator]
    (trainers,) = [spec for name, spec in policies.items() if name.endswith("-trainers")]
    assert trainers["ingress"][1] == {"ports": [{"port": 9400}]}


def test_only_named_peers_may_scrape_metrics(render: Render) -> None:
    (metrics,) = render("everything").one("NetworkPolicy", "adapter")["spec"]["ingress"]
    assert metrics["ports"] == [{"port": 8081}]
    assert metrics["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


def test_training_pods_reach_each_other_and_the_operator_their_progress(
    render: Render, trainer_labels: dict[str, str]
) -> None:
    policy = render("everything").one("NetworkPolicy", "dapt-system-adapter-trainers")
    assert policy["metadata"]["namespace"] == "health"
    spec = policy["spec"]
    assert selects(spec["podSelector"], trainer_labels)
    gang, progress = spec["ingress"]
    assert set(gang) == {"from"}  # every port: gloo and NCCL choose their own
    assert selects(gang["from"][0]["podSelector"], trainer_labels)
    assert progress["ports"] == [{"port": 9500}]
    operator, monitoring = progress["from"]
    assert operator["podSelector"] == {"matchLabels": OPERATOR}
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "dapt-system"}}
    assert monitoring == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


@pytest.mark.parametrize(
    "kind", ["prepare", "baseline", "pretrain", "evaluate", "finetune", "verify", "publish"]
)
def test_offline_stages_cannot_leave_their_run(
    render: Render, trainer_labels: dict[str, str], kind: str
) -> None:
    spec = render("everything").one("NetworkPolicy", "dapt-system-adapter-offline-stages")["spec"]
    assert spec["policyTypes"] == ["Egress"]
    labels = trainer_labels | {names.LABEL_KIND: kind}
    assert selects(spec["podSelector"], labels) is (kind not in ONLINE_KINDS)


@pytest.mark.parametrize("kind", ["prepare", "tuning_data", "destination", "publish", "pretrain", "evaluate"])
def test_online_stages_reach_dns_and_what_the_values_name(
    render: Render, trainer_labels: dict[str, str], kind: str
) -> None:
    spec = render("everything").one("NetworkPolicy", "dapt-system-adapter-online-stages")["spec"]
    assert spec["policyTypes"] == ["Egress"]
    assert selects(spec["podSelector"], trainer_labels | {names.LABEL_KIND: kind}) is (kind in ONLINE_KINDS)
    dns, store = spec["egress"]
    assert dns == DNS
    assert store == {"ports": [{"port": 9000}], "to": [{"podSelector": {"matchLabels": {"app": "store"}}}]}


def test_online_stages_reach_hubs_and_stores_by_default(render: Render) -> None:
    sets = ('networkPolicy.trainerNamespaces=["ml"]',)
    policies = render("whole-cluster", *sets).of("NetworkPolicy")
    (online,) = [item for item in policies if item["metadata"]["name"].endswith("-online-stages")]
    assert online["spec"]["egress"][1:] == [{"ports": [{"port": 443}]}]


def test_trainer_namespaces_are_named_for_a_whole_cluster(render: Render) -> None:
    def places(*sets: str) -> list[str]:
        objects = render("whole-cluster", *sets)
        return [item["metadata"]["namespace"] for item in objects.of("NetworkPolicy")]

    assert places() == ["dapt-system"]
    assert sorted(places('networkPolicy.trainerNamespaces=["ml"]')) == ["dapt-system", "ml", "ml", "ml"]
    without = places('networkPolicy.trainerNamespaces=["ml"]', "networkPolicy.isolateOfflineStages=false")
    assert sorted(without) == ["dapt-system", "ml", "ml"]
