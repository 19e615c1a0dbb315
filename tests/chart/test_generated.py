"""The chart's README, its annotations and the kustomize base are what `make chart` writes now."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dapt_client.documents import check_file

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "dapt"
BASE = ROOT / "deploy" / "kustomize" / "base"
GENERATE = runpy.run_path(str(ROOT / "charts" / "generate.py"))
STALE = "is stale: run `make chart`"
ANNOTATIONS = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]


@pytest.mark.parametrize(
    ("path", "write"),
    [
        (CHART / "README.md", GENERATE["readme"]),
        (CHART / "Chart.yaml", GENERATE["chart_yaml"]),
        (BASE / "crds.yaml", GENERATE["definitions"]),
        (BASE / "namespace.yaml", lambda: GENERATE["NAMESPACE_OBJECT"]),
        (BASE / "kustomization.yaml", lambda: GENERATE["KUSTOMIZATION"]),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_generated_files_are_current(path: Path, write: Any) -> None:
    assert path.read_text() == write(), f"{path.relative_to(ROOT)} {STALE}"


def test_the_kustomize_base_is_what_the_chart_renders(helm: Any) -> None:
    done = helm(*GENERATE["helm_arguments"]())
    assert done.returncode == 0, done.stderr
    assert (BASE / "operator.yaml").read_text() == GENERATE["from_helm"](done.stdout), (
        f"deploy/kustomize/base/operator.yaml {STALE}"
    )


def test_the_kustomize_base_names_its_files_and_nothing_of_helm() -> None:
    resources = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert {*resources, "kustomization.yaml"} == {path.name for path in BASE.iterdir()}
    text = (BASE / "operator.yaml").read_text()
    assert "helm" not in text.lower()
    namespaces = {item["metadata"].get("namespace") for item in yaml.safe_load_all(text)}
    assert namespaces == {None, "dapt-system"}


def test_the_readme_lists_every_value_once() -> None:
    lines = (CHART / "README.md").read_text().splitlines()
    listed = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert len(listed) == len(set(listed))
    assert {name.partition(".")[0] for name in listed} == set(
        yaml.safe_load((CHART / "values.yaml").read_text())
    )
    assert "networkPolicy.apiServer.cidrs" in listed


def test_artifact_hub_gets_valid_examples_of_every_definition(tmp_path: Path) -> None:
    definitions = yaml.safe_load(ANNOTATIONS["artifacthub.io/crds"])
    examples = yaml.safe_load(ANNOTATIONS["artifacthub.io/crdsExamples"])
    assert {item["kind"] for item in definitions} == {item["kind"] for item in examples}
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(json.dumps(example))
        (checked,) = check_file(path)
        assert checked.problems == ()


def test_artifact_hub_gets_the_images_and_changes_of_the_version() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    images = yaml.safe_load(ANNOTATIONS["artifacthub.io/images"])
    assert [item["image"].rpartition(":")[2] for item in images] == [version, version]
    changes = yaml.safe_load(ANNOTATIONS["artifacthub.io/changes"])
    assert {change["kind"] for change in changes} <= set(GENERATE["KINDS"].values())


CHANGELOG = """# Changelog

## [Unreleased]

### Added
- Not yet.

## [1.2.0] - 2026-01-31

### Added
- **A thing** that
  takes two lines.
- Another one.

### Security
- A hole is closed.

## [1.1.0]

### Fixed
- Long ago.
"""


def test_changes_are_those_of_the_section_of_the_version() -> None:
    assert GENERATE["changes"](CHANGELOG, "1.2.0") == [
        {"kind": "added", "description": "A thing that takes two lines."},
        {"kind": "added", "description": "Another one."},
        {"kind": "security", "description": "A hole is closed."},
    ]


@pytest.mark.parametrize("version", ["1.3.0", "1.1.0"])
def test_a_version_without_a_date_has_no_changes_yet(version: str) -> None:
    (entry,) = GENERATE["changes"](CHANGELOG, version)
    assert entry["description"] == f"{version} is not released yet: see CHANGELOG.md"
