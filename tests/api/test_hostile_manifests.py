"""Manifests of a tenant who means harm: the API server refuses them by the schema alone, and `dapt lint` agrees."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dapt_operator.api.schema import crd
from dapt_operator.api.validation.validate import check
from dapt_operator.api.validation.yaml_source import YamlDocument
from support.hostile_manifests import HARMLESS, HOSTILE, MANIFEST, with_value
from support.schema_judge import refusals

DIGEST = "sha256:" + "0f" * 32
IMAGES = (
    "trainer", "trainer:1", "registry.example:5000/team/dapt_trainer--x:v1.0-rc.1", "localhost/x", "[::1]:5000/x",
    f"x@{DIGEST}", f"Registry.Example/a/b__c:1@{DIGEST}",
)  # fmt: skip
NO_IMAGES = (
    "", "foo bar", " trainer", "trainer:1 ", "trainer:1\n", "Trainer", "https://registry.example/x", "x:1:2",
    "x:", "x//y",
    "../x", "-x", "x-", "registry.example/x:\u202e1", "x:\x1b[0m", "$(IMAGE)", "x@sha256:12",
    f"x@{DIGEST}:1", "x:" + "1" * 129,
    "ü/x", "\u0430/x", "x" * 513, "x;y", "x?y=1",
)  # fmt: skip


def lint(manifest: dict[str, Any]) -> list[str]:
    _, problems = check(YamlDocument(manifest), local=False)
    return [problem.field for problem in problems]


def test_the_manifest_that_the_others_start_from_is_accepted_by_both() -> None:
    assert (refusals(MANIFEST), lint(MANIFEST)) == ([], [])


def test_there_are_at_least_120_hostile_manifests() -> None:
    assert len({(place, str(value)) for place, value in HOSTILE}) >= 120


@pytest.mark.parametrize(("place", "value"), HOSTILE, ids=lambda value: ascii(value)[:60])
def test_a_hostile_manifest_is_refused_by_the_schema_and_by_lint(place: str, value: Any) -> None:
    manifest = with_value(place, value)
    field = "spec." + place.split(".0.")[0]
    by_schema, by_lint = refusals(manifest), lint(manifest)
    assert any(text.startswith(f".{field}") for text in by_schema), by_schema
    assert any(name.startswith(field) for name in by_lint), by_lint


def test_no_pattern_has_a_class_that_go_and_python_read_differently() -> None:
    definitions = "".join(crd.render().values())
    assert "pattern: ^" in definitions
    assert re.findall(r"\\[dDwWsSbB]", definitions) == []


@pytest.mark.parametrize(("place", "value"), HARMLESS, ids=lambda value: ascii(value)[:60])
def test_a_harmless_manifest_is_accepted_by_the_schema_and_by_lint(place: str, value: Any) -> None:
    manifest = with_value(place, value)
    assert (refusals(manifest), lint(manifest)) == ([], [])


def profile_with_image(trainer: str, other: str = "side:1") -> dict[str, Any]:
    containers = [{"name": "side", "image": other}]
    spec = {
        "trainerImage": trainer,
        "accelerator": {"memoryGiB": 80},
        "storage": {"existingClaim": "work"},
        "podTemplate": {"spec": {"containers": containers}},
    }
    return {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "AdaptationProfile",
        "metadata": {"name": "a"},
        "spec": spec,
    }


@pytest.mark.parametrize("image", NO_IMAGES, ids=lambda value: ascii(value)[:60])
def test_image_that_no_node_can_pull_is_refused_by_the_schema_and_by_lint(image: str) -> None:
    (by_schema,) = refusals(profile_with_image(image))[:1]
    assert by_schema.startswith(".spec.trainerImage: ")
    assert lint(profile_with_image(image)) == ["spec.trainerImage"]
    assert lint(profile_with_image("trainer:1", image)) == ["spec.podTemplate.spec.containers[0].image"]


@pytest.mark.parametrize("image", IMAGES)
def test_image_is_accepted_as_container_runtimes_write_it(image: str) -> None:
    assert refusals(profile_with_image(image, image)) == []
    assert lint(profile_with_image(image, image)) == []
