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
