"""The generated files are current, structural and complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dapt_operator.api import reference
from dapt_operator.api.schema import crd, immutable, manifest_schema
from dapt_operator.api.v1alpha1.base import Base, camel_case
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.status import Frozen

ROOT = Path(__file__).parents[2]

DEFINITIONS = [crd.adaptation_definition(), crd.profile_definition()]

SCHEMA_KEYS = {
    "additionalProperties",
    "default",
    "description",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "anyOf",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
}


def schema_of(definition: dict[str, Any]) -> dict[str, Any]:
    (version,) = definition["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from walk(node["additionalProperties"], f"{path}.*")


NODES = [
    pytest.param(path, node, id=f"{definition['spec']['names']['kind']}{path}")
    for definition in DEFINITIONS
    for path, node in walk(schema_of(definition))
]


@pytest.mark.parametrize("name", sorted(crd.render()))
def test_crds_are_current(name: str) -> None:
    assert (ROOT / "crds" / name).read_text() == crd.render()[name], "stale: write what `dapt crd` prints"


def test_the_schema_in_the_package_is_current() -> None:
    path = Path(crd.__file__).with_name(manifest_schema.FILE)
    assert path.read_text() == crd.render_manifest_schema(), "stale: run `make crds`"


def test_a_status_is_one_field_to_the_api_server() -> None:
    (status,) = (
        schema_of(found)["properties"]["status"]
        for found in DEFINITIONS
        if "status" in schema_of(found)["properties"]
    )
    assert status["x-kubernetes-map-type"] == "atomic"


def test_there_is_no_other_crd() -> None:
    assert {path.name for path in (ROOT / "crds").glob("*.yaml")} == set(crd.render())


@pytest.mark.parametrize("name", sorted(reference.render()))
def test_reference_pages_are_current(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text() == reference.render()[name], (
        "stale: run `make crds`"
    )


@pytest.mark.parametrize(("path", "node"), NODES)
def test_every_schema_node_is_structural_and_bounded(path: str, node: dict[str, Any]) -> None:
    assert set(node) <= SCHEMA_KEYS
    if node.get("x-kubernetes-int-or-string"):
        assert "type" not in node  # the one kind of node that may have none
        assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}]
        assert {"minimum", "maxLength", "pattern"} <= set(node)
        return
    assert "anyOf" not in node
    assert node["type"] in ("object", "array", "string", "integer", "number", "boolean")
    assert not ("properties" in node and "additionalProperties" in node)
    assert set(node.get("required", ())) <= set(node.get("properties", {}))
    in_kubernetes_hands = path in (".apiVersion", ".kind", ".metadata")
    if node["type"] == "array":
        assert "items" in node
        assert "maxItems" in node
    if node["type"] == "string" and not in_kubernetes_hands:
        assert "enum" in node or "maxLength" in node
    if node["type"] == "object" and "additionalProperties" in node:
        assert "maxProperties" in node
    if node["type"] in ("integer", "number") and path.startswith(".spec"):
        assert "minimum" in node
        assert "maximum" in node


@pytest.mark.parametrize(("path", "node"), NODES)
def test_every_field_is_described(path: str, node: dict[str, Any]) -> None:
    if path.endswith(("[]", ".*")) or path in (".apiVersion", ".kind", ".metadata"):
        return
    assert node["description"].endswith((".", ")"))


@pytest.mark.parametrize(("path", "node"), NODES)
def test_defaults_are_complete_and_within_their_own_schema(path: str, node: dict[str, Any]) -> None:
    if "default" in node:
        accept(node, node["default"], path)


def accept(node: dict[str, Any], value: Any, path: str) -> None:
    """Check a default as the API server does: as it is written, before it fills in the defaults inside it."""
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    assert isinstance(value, kinds[node["type"]]), path
    if isinstance(value, dict) and "properties" in node:
        assert set(node.get("required", ())) <= set(value) <= set(node["properties"])
        assert {name for name, child in node["properties"].items() if "default" in child} <= set(value)
        for name, item in value.items():
            accept(node["properties"][name], item, f"{path}.{name}")
    if isinstance(value, list):
        assert node.get("minItems", 0) <= len(value) <= node["maxItems"]
        for item in value:
            accept(node["items"], item, path)
    if "enum" in node:
        assert value in node["enum"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        assert node.get("minimum", value) <= value <= node.get("maximum", value)


def test_a_rule_names_only_fields_that_the_schema_has() -> None:
    for definition in DEFINITIONS:
        for path, node in walk(schema_of(definition)):
            for rule in node.get("x-kubernetes-validations", ()):
                target = node
                for part in rule.get("fieldPath", "").split(".")[1:]:
                    assert part in target["properties"], (path, rule)
                    target = target["properties"][part]
                assert len(rule["message"]) <= 2048
                assert "\n" not in rule["message"]


def test_every_block_that_freezes_has_a_rule_at_the_root() -> None:
    assert set(immutable.FROZEN_BLOCKS) == {camel_case(name) for name in Frozen.model_fields}
    rules = {rule["rule"]: rule for rule in schema_of(DEFINITIONS[0])["x-kubernetes-validations"]}
    assert len(rules) == 2 + len(immutable.FROZEN_BLOCKS)
    assert rules[immutable.cel("corpus")] == {
        "rule": (
            "!has(oldSelf.status) || !has(oldSelf.status.frozen) || !has(oldSelf.status.frozen.corpus)"
            " || !oldSelf.status.frozen.corpus || (has(self.spec.corpus) == has(oldSelf.spec.corpus)"
            " && (!has(self.spec.corpus) || self.spec.corpus == oldSelf.spec.corpus))"
        ),
        "message": (
            "spec.corpus cannot change any more, since the stage baseline that reads it has started: restore it,"
            " or create a new DomainAdaptation"
        ),
        "fieldPath": ".spec.corpus",
    }


def test_a_rule_about_more_than_one_field_lets_a_stored_object_keep_what_breaks_it() -> None:
    # At each write the root differs, and the spec at each edit: the API server asks their rules of fields that nobody
    # touched.
    for definition in DEFINITIONS:
        schema = schema_of(definition)
        rules = [*schema["x-kubernetes-validations"], *rules_of(schema["properties"]["spec"])]
        asked = [rule for rule in rules if not rule.get("optionalOldSelf")]
        assert [rule["rule"] for rule in asked if "oldSelf.status.frozen" not in rule["rule"]] == []
    spec = rules_of(schema_of(DEFINITIONS[0])["properties"]["spec"])
    assert spec[0]["rule"] == (
        "(!has(self.preference) || has(self.finetuning)) || (oldSelf.hasValue()"
        " && !(!has(oldSelf.value().preference) || has(oldSelf.value().finetuning)))"
    )


def rules_of(node: dict[str, Any]) -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = node.get("x-kubernetes-validations", [])
    return rules


def columns_of(spec: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The columns of `kubectl get`, and those that `-o wide` adds."""
    columns = spec["versions"][0]["additionalPrinterColumns"]
    return (
        [column["name"] for column in columns if not column.get("priority")],
        [column["name"] for column in columns if column.get("priority")],
    )


def test_every_column_reads_a_field_that_the_schema_has() -> None:
    for definition in DEFINITIONS:
        known = {path for path, _ in walk(schema_of(definition))}
        for column in definition["spec"]["versions"][0]["additionalPrinterColumns"]:
            path = re.sub(r"\[[^]]*\]", "[]", column["jsonPath"])
            assert path in known or path.startswith(".metadata."), column["name"]


def test_an_adaptation_begins_as_one_that_nobody_has_observed() -> None:
    status = schema_of(DEFINITIONS[0])["properties"]["status"]["default"]
    assert status.pop("observedGeneration") == -1
    assert set(map(repr, status.values())) == {"[]"}


def test_names_columns_and_scopes() -> None:
    adaptation, profile = (definition["spec"] for definition in DEFINITIONS)
    assert adaptation["scope"] == "Namespaced"
    assert adaptation["names"]["shortNames"] == ["da"]
    assert adaptation["names"]["categories"] == ["training"]
    assert adaptation["versions"][0]["subresources"] == {"status": {}}
    shown, wide = columns_of(adaptation)
    assert shown == ["Ready", "Phase", "Reason", "Stage", "Progress", "ETA", "Forgetting", "Gain", "Age"]
    assert wide == ["Attempt", "GPU-Hours", "Selected", "Profile", "Message"]
    assert profile["names"]["shortNames"] == ["ap"]
    shown, wide = columns_of(profile)
    assert shown == ["Kind", "Per-Node", "GiB", "Launcher", "Max-Nodes", "Max-GPU-Hours", "Default", "Age"]
    assert wide == ["Image", "Namespaces"]
    assert profile["scope"] == "Cluster"
    assert schema_of(DEFINITIONS[0])["properties"]["spec"]["required"] == [
        "model",
        "corpus",
        "output",
        "resources",
    ]


def test_only_blocks_that_kubernetes_defines_are_free_form() -> None:
    free = [
        path
        for definition in DEFINITIONS
        for path, node in walk(schema_of(definition))
        if node.get("x-kubernetes-preserve-unknown-fields")
    ]
    assert free == [".status.ledger.runs[].facts", ".spec.storage.claimTemplate", ".spec.podTemplate"]


def test_a_union_of_types_is_refused() -> None:
    class Union(BaseModel):
        value: int | str

    with pytest.raises(ValueError, match="not structural: a union of types"):
        crd.structural(Union)


def test_an_unforeseen_schema_key_is_refused() -> None:
    class Keyed(BaseModel):
        model_config = {"json_schema_extra": {"if": {}}}

    with pytest.raises(ValueError, match=r"not structural: \['if'\]"):
        crd.structural(Keyed)


def adaptation(**status: bool) -> tuple[DomainAdaptation, Frozen | None]:
    document = {
        "metadata": {"name": "a"},
        "spec": {
            "model": {"source": "hf://a/b"},
            "corpus": {"domain": [{"source": "s3://a"}], "general": [{"source": "s3://b"}]},
            "output": {"destination": "s3://c"},
            "resources": {},
        },
    }
    return DomainAdaptation.model_validate(document), Frozen(**status) if status else None


def test_only_changes_of_frozen_blocks_are_refused() -> None:
    old, frozen = adaptation(corpus=True, profile=True)
    changed = old.spec.model_copy(
        update={
            "profile": "other",
            "seed": 4,
            "corpus": old.spec.corpus.model_copy(update={"deduplicate": "none"}),
        }
    )
    assert immutable.changed_blocks(old.spec, changed, frozen) == {
        "corpus": immutable.message("corpus"),
        "profile": immutable.message("profile"),
    }
    assert immutable.changed_blocks(old.spec, changed, Frozen(model=True)) == {}
    assert immutable.changed_blocks(old.spec, changed, None) == {}
    assert immutable.changed_blocks(old.spec, old.spec, frozen) == {}


def test_every_rule_reads_a_field_and_has_one_sentence() -> None:
    def blocks(model: type[Base]) -> Iterator[type[Base]]:
        yield model
        for subclass in model.__subclasses__():
            yield from blocks(subclass)

    rules = [rule for block in blocks(Base) for rule in block.RULES]
    assert len(rules) >= 15
    for rule in rules:
        assert "self." in rule.cel
        assert not rule.message.endswith(".")
