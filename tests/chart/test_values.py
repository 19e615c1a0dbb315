"""values.yaml and values.schema.json: every value is described, and a wrong one is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "dapt"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
HELMS_OWN = {"global"}


def blocks(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, inner in (schema.get("properties") or {}).items():
        yield from blocks(inner, f"{path}.{name}".strip("."))
    if "items" in schema:
        yield from blocks(schema["items"], f"{path}[]")


def test_every_value_has_a_default_and_every_default_a_schema() -> None:
    def names(value: Any, path: str = "") -> set[str]:
        inner = value if isinstance(value, dict) else {}
        return {path} | {name for key in inner for name in names(inner[key], f"{path}.{key}".strip("."))}

    # Kubernetes' own objects are taken as they are: only their defaults are ours.
    kubernetes_own = ("podSecurityContext.", "containerSecurityContext.")
    described = {path for path, _ in blocks(SCHEMA) if "[]" not in path} - HELMS_OWN
    optional = {
        f"resources.{kind}.{name}" for kind in ("requests", "limits") for name in ("cpu", "ephemeral-storage")
    }
    assert described - names(VALUES) - optional == set()
    ours = {path for path in names(VALUES) if not path.startswith(kubernetes_own)}
    assert ours - described == set()


def test_every_value_is_described_with_a_sentence() -> None:
    for path, block in blocks(SCHEMA):
        if path:
            assert block.get("description", "").endswith((".", ".)")), path


def test_no_block_takes_a_value_that_it_does_not_know() -> None:
    for path, block in blocks(SCHEMA):
        if "properties" in block:
            assert block["additionalProperties"] is False, path
        if "array" in block["type"]:
            assert "items" in block, path


def test_blocks_that_templates_read_are_required() -> None:
    """Helm removes what is null before it judges values by their schema."""
    # Without these the operator has no requests and limits; the security contexts have no properties of ours.
    left_out = {"resources", "resources.requests", "resources.limits"} | HELMS_OWN
    required = {
        f"{path}.{name}".strip(".") for path, block in blocks(SCHEMA) for name in block.get("required") or []
    }
    read = {path for path, block in blocks(SCHEMA) if path and "properties" in block and "[]" not in path}
    assert read - left_out - required == set()


BAD = {
    "features=null": "at '': missing property 'features'",
    "networkPolicy=null": "at '': missing property 'networkPolicy'",
    "networkPolicy.apiServer=null": "at '/networkPolicy': missing property 'apiServer'",
    "operator.workers=null": "at '/operator': missing property 'workers'",
    "replica=2": "additional properties 'replica' not allowed",
    "replicas=0": "at '/replicas': minimum: got 0, want 1",
    "operator.workerz=4": "at '/operator': additional properties 'workerz' not allowed",
    "operator.workers=0": "at '/operator/workers': minimum: got 0, want 1",
    "operator.workers=\"8\"": "at '/operator/workers': got string, want integer",
    "operator.resyncSeconds=1": "at '/operator/resyncSeconds': minimum: got 1, want 10",
    "operator.logLevel=\"loud\"": "at '/operator/logLevel': value must be one of 'debug', 'info', 'warning', 'error'",
    "namespaces=\"health\"": "at '/namespaces': got string, want array",
    "namespaces=[\"Health\"]": "at '/namespaces/0': 'Health' does not match pattern",
    "namespaces=[\"ml-*\"]": "at '/namespaces/0': 'ml-*' does not match pattern",
    "namespaces=[\"a\",\"a\"]": "at '/namespaces': items at 0 and 1 are equal",
    "image.digest=\"sha256:12\"": "at '/image/digest': 'sha256:12' does not match pattern",
    "image.pullPolicy=\"Sometimes\"": "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
    "port=80": "at '/port': minimum: got 80, want 1,024",
    "metrics.monitor=\"Pod\"": "at '/metrics/monitor': value must be one of 'None', 'PodMonitor', 'ServiceMonitor'",
    "metrics.interval=\"fast\"": "at '/metrics/interval': 'fast' does not match pattern",
    "crds.install=\"yes\"": "at '/crds/install': got string, want boolean",
    "resources.limits.memory=\"1 GB\"": "at '/resources/limits/memory': '1 GB' does not match pattern",
    "networkPolicy.apiServer.cidrs=[\"10.0.0.1\"]": "at '/networkPolicy/apiServer/cidrs/0': '10.0.0.1' does not match",
    "networkPolicy.apiServer.ports=[]": "at '/networkPolicy/apiServer/ports': minItems: got 0, want 1",
    "serviceAccount={\"create\": false}": "serviceAccount.name is needed when serviceAccount.create is false",
}  # fmt: skip


@pytest.mark.parametrize(("value", "sentence"), BAD.items(), ids=BAD)
def test_a_bad_value_is_refused_by_its_name(helm: Any, value: str, sentence: str) -> None:
    done = helm("template", "dapt", CHART, "--kube-version", "1.31.0", "--set-json", value)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_an_old_kubernetes_is_refused(helm: Any) -> None:
    done = helm("template", "dapt", CHART, "--kube-version", "1.30.9")
    assert done.returncode != 0
    assert (
        "chart requires kubeVersion: >=1.31.0-0 which is incompatible with Kubernetes v1.30.9" in done.stderr
    )
