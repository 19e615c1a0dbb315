"""Every version of the API that is stored somewhere is read without loss: docs/api-versions.md."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_operator.api.schema import crd
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).parent / "stored_versions"
"""A folder for each version that was ever stored, with objects as it wrote them. Files are added, never edited."""
DEFINITIONS = {
    definition["spec"]["names"]["kind"]: definition
    for definition in (crd.adaptation_definition(), crd.profile_definition())
}
READERS: dict[str, Any] = {"DomainAdaptation": DomainAdaptation, "AdaptationProfile": AdaptationProfile}
OBJECTS = sorted(STORED.rglob("*.yaml"))


def versions(kind: str) -> dict[str, dict[str, Any]]:
    return {version["name"]: version for version in DEFINITIONS[kind]["spec"]["versions"]}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_exactly_one_version_is_the_stored_one_and_every_version_is_served(kind: str) -> None:
    found = versions(kind)
    assert [name for name, version in found.items() if version["storage"]] == ["v1alpha1"]
    assert all(version["served"] for version in found.values())


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_every_version_has_stored_objects_and_a_package(kind: str) -> None:
    for name in versions(kind):
        assert [path for path in OBJECTS if path.parent.name == name and kind in path.read_text()], name
        importlib.import_module(f"dapt_operator.api.{name}")


def test_several_versions_need_a_conversion() -> None:
    for definition in DEFINITIONS.values():
        if len(definition["spec"]["versions"]) > 1:
            assert definition["spec"]["conversion"]["strategy"] == "None", (
                "only fields of the same shape convert so"
            )


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_stored_object_is_read_and_written_without_loss(path: Path) -> None:
    stored = YAML(typ="safe").load(path)
    model = READERS[stored["kind"]].model_validate(stored)
    assert model.to_dict(only_set=True) == stored
    assert READERS[stored["kind"]].model_validate(model.to_dict()) == model


def test_the_page_lists_every_version() -> None:
    page = (ROOT / "docs" / "api-versions.md").read_text()
    for kind in DEFINITIONS:
        for name in versions(kind):
            assert f"| `{name}` |" in page
