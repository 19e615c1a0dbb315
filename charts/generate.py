"""Writes what follows from the chart: its README, dashboards, annotations for Artifact Hub, and the kustomize base.

make chart

The base is rendered by Helm 3; without helm it is left as it is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from dapt_operator.api.schema import crd

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "dapt"
BASE = ROOT / "deploy" / "kustomize" / "base"
NAMESPACE: Final = "dapt-system"
OLDEST_KUBERNETES: Final = "1.31.0"
EXAMPLES: Final = ("profile-h100.yaml", "clinical.yaml")
"""Files of examples/ that Artifact Hub shows, one of each kind."""
SUMMARIES: Final = {
    "DomainAdaptation": "A model, the text of a domain and a limit of forgetting; its status has what was measured.",
    "AdaptationProfile": "What the platform offers to adaptations: image, hardware, storage and limits.",
}
KINDS: Final = {"Added": "added", "Changed": "changed", "Deprecated": "deprecated", "Removed": "removed",
                "Fixed": "fixed", "Security": "security"}  # fmt: skip
"""Headings of the changelog -> what Artifact Hub calls such a change."""


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True  # type: ignore[assignment]
    return yaml


# --- README ---

README: Final = """<!-- Written by `make chart` from values.yaml and values.schema.json. -->

# dapt

{description}

It needs Kubernetes 1.31 or later and nothing else in the cluster: `docs/installing.md` leads from an empty cluster to a
first adapted model, `docs/operating.md` has rights, network policies and alerts.

```console
helm install dapt charts/dapt --namespace dapt-system --create-namespace \\
  --set image.repository=registry.example/dapt-operator
```

Helm refuses a value that does not exist, has a wrong type, or that Kubernetes would refuse, and names it. Without Helm,
`deploy/kustomize/base` has what the chart renders by its defaults.

## Values

| value | default | meaning |
| --- | --- | --- |
{rows}
"""


def _values(schema: dict[str, Any], default: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield path, default and meaning of every value that a user sets, in the order of the schema."""
    for name, block in schema["properties"].items():
        inner = f"{path}.{name}".strip(".")
        value = default.get(name) if isinstance(default, dict) else None
        if "properties" in block:
            yield from _values(block, value, inner)
        else:
            yield inner, value, block["description"]


def readme() -> str:
    """Return README.md of the chart: every value with its default and meaning."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = YAML(typ="safe").load(CHART / "values.yaml")
    about = YAML(typ="safe").load(CHART / "Chart.yaml")
    rows = [
        f"| `{path}` | {_cell(value)} | {meaning.replace('|', chr(92) + '|')} |"
        for path, value, meaning in _values(schema, values)
        if path != "global"
    ]
    return README.format(description=about["description"], rows="\n".join(rows))


def _cell(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`".replace("|", "\\|")


# --- Artifact Hub ---


def changes(changelog: str, version: str) -> list[dict[str, str]]:
    """Return the changelog's entries about a version as Artifact Hub lists them; before its release, one.

    The heading of a version has a date from its release on.
    """
    section = re.search(
        rf"^## \[{re.escape(version)}\] - \d[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    if section is None:
        return [{"kind": "changed", "description": f"{version} is not released yet: see CHANGELOG.md"}]
    found = []
    for heading, body in re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", section[1], re.MULTILINE | re.DOTALL):
        for entry in re.findall(r"^- (.*?)(?=^- |^\s*$|\Z)", body, re.MULTILINE | re.DOTALL):
            found.append({"kind": KINDS[heading], "description": " ".join(entry.replace("**", "").split())})
    return found


def annotations() -> dict[str, str]:
    """Return the annotations of Chart.yaml that Artifact Hub reads."""
    about = YAML(typ="safe").load(CHART / "Chart.yaml")
    values = YAML(typ="safe").load(CHART / "values.yaml")
    version = str(about["version"])
    definitions = [crd.adaptation_definition(), crd.profile_definition()]
    crds = [
        {
            "kind": definition["spec"]["names"]["kind"],
            "version": definition["spec"]["versions"][0]["name"],
            "name": definition["metadata"]["name"],
            "displayName": definition["spec"]["names"]["kind"],
            "description": SUMMARIES[definition["spec"]["names"]["kind"]],
        }
        for definition in definitions
    ]
    examples = [YAML(typ="safe").load(ROOT / "examples" / name) for name in EXAMPLES]
    image = f"{values['image']['repository']}:{version}"
    trainer = next(item["spec"]["trainerImage"] for item in examples if item["kind"] == "AdaptationProfile")
    parts: dict[str, Any] = {
        "artifacthub.io/category": "ai-machine-learning",
        "artifacthub.io/license": "Apache-2.0",
        "artifacthub.io/operator": "true",
        "artifacthub.io/operatorCapabilities": "Seamless Upgrades",
        "artifacthub.io/prerelease": str(version.startswith("0.")).lower(),
        "artifacthub.io/containsSecurityUpdates": "false",
        "artifacthub.io/changes": changes((ROOT / "CHANGELOG.md").read_text(), version),
        "artifacthub.io/crds": crds,
        "artifacthub.io/crdsExamples": "".join(map(_item, EXAMPLES)),
        "artifacthub.io/images": [
            {"name": "operator", "image": image, "platforms": ["linux/amd64"]},
            {"name": "trainer", "image": trainer, "platforms": ["linux/amd64"]},
        ],
        "artifacthub.io/links": [
            {"name": "installing", "url": "docs/installing.md"},
            {"name": "API reference", "url": "docs/reference/api.md"},
            {"name": "support", "url": "SECURITY.md"},
        ],
    }  # fmt: skip
    if any(change["kind"] == "security" for change in parts["artifacthub.io/changes"]):
        parts["artifacthub.io/containsSecurityUpdates"] = "true"
    return {name: value if isinstance(value, str) else _text(value) for name, value in parts.items()}


def _item(name: str) -> str:
    """Return an example as an item of a list, its numbers as they are written."""
    text = (ROOT / "examples" / name).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return "".join(f"{'  ' if number else '- '}{line}\n" for number, line in enumerate(lines))


def _text(value: Any) -> str:
    out = StringIO()
    _yaml().dump(value, out)
    return out.getvalue()


def chart_yaml() -> str:
    """Return Chart.yaml with these annotations; all else stays."""
    yaml = _yaml()
    about = yaml.load(CHART / "Chart.yaml")
    about["annotations"] = {
        name: LiteralScalarString(text) if "\n" in text else text for name, text in annotations().items()
    }
    out = StringIO()
    yaml.dump(about, out)
    return out.getvalue()


# --- kustomize ---

HEADER: Final = "# Written by `make chart`. Do not edit: change it in an overlay.\n"
KUSTOMIZATION: Final = (
    HEADER
    + """apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - namespace.yaml
  - crds.yaml
  - operator.yaml
"""
)
NAMESPACE_OBJECT: Final = (
    HEADER
    + f"""apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""
)


def definitions() -> str:
    """Return the CustomResourceDefinitions as one file."""
    return HEADER + "---\n".join(crd.render().values())


def from_helm(rendered: str) -> str:
    """Return what Helm rendered as plain manifests: nothing of Helm is left in their labels."""
    text = re.sub(r"^# Source: .*\n", "", rendered, flags=re.MULTILINE)
    text = re.sub(r"^ *helm\.sh/chart: .*\n", "", text, flags=re.MULTILINE)
    text = text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kustomize")
    return HEADER + text.strip() + "\n"


def helm_arguments() -> list[str]:
    """Return the words after `helm` that render the base."""
    return [
        "template", "dapt", str(CHART), "--namespace", NAMESPACE, "--kube-version", OLDEST_KUBERNETES,
        "--set", "crds.install=false",
    ]  # fmt: skip


def find_helm() -> str | None:
    """Return the helm that `make cluster` has built, else the machine's."""
    sys.path.append(str(ROOT / "tests" / "cluster"))
    from testcluster import build

    folder = build.built("helm")
    return str(folder / "helm") if folder else shutil.which("helm")


def write_dashboards() -> None:
    """Write the dashboards, where the library that makes them is installed."""
    sys.path.append(str(ROOT / "charts"))
    try:
        import dashboards
    except ModuleNotFoundError as missing:
        print(f"no {missing.name}: charts/dapt/files/dashboards stays as it is; run `make setup`")
    else:
        dashboards.main()


def main() -> None:
    write_dashboards()
    (CHART / "Chart.yaml").write_text(chart_yaml())
    (CHART / "README.md").write_text(readme())
    BASE.mkdir(parents=True, exist_ok=True)
    (BASE / "kustomization.yaml").write_text(KUSTOMIZATION)
    (BASE / "namespace.yaml").write_text(NAMESPACE_OBJECT)
    (BASE / "crds.yaml").write_text(definitions())
    helm = find_helm()
    if helm is None:
        print(
            "no helm: deploy/kustomize/base/operator.yaml stays as it is; run `make cluster` or install Helm 3"
        )
        return
    done = subprocess.run([helm, *helm_arguments()], capture_output=True, text=True, check=True)
    (BASE / "operator.yaml").write_text(from_helm(done.stdout))


if __name__ == "__main__":
    main()
