"""Judges a manifest by the schema of a CustomResourceDefinition, as the API server does: types, bounds and CEL."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import celpy

from dapt_operator.api.quantity import is_quantity, parse_quantity
from dapt_operator.api.schema import crd

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "int-or-string": (int, str),
}
_OF_A_STORED_OBJECT = re.compile(r"^oldSelf\.hasValue\(\) \|\| | \|\| \(oldSelf\.hasValue\(\) && .*\)$")


@cache
def _schema(kind: str) -> dict[str, Any]:
    definition = crd.profile_definition if kind == "AdaptationProfile" else crd.adaptation_definition
    (version,) = definition()["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def refusals(manifest: dict[str, Any]) -> list[str]:
    """What the API server says about a new DomainAdaptation or profile; empty: it is stored."""
    schema = _schema(manifest["kind"])
    filled = copy.deepcopy({key: value for key, value in manifest.items() if key != "status"})
    _fill(filled, schema)
    return list(_refusals(filled, schema, ""))


def _fill(value: Any, schema: dict[str, Any]) -> None:
    """Add the defaults, outer ones first."""
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                _fill(value[name], child)
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            _fill(item, schema["items"])


def _refusals(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    kind = "int-or-string" if schema.get("x-kubernetes-int-or-string") else schema.get("type", "object")
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{path}: must be of type {kind}"
        return
    found = [f"{path}: {text}" for text in _bounds(value, schema)]
    if isinstance(value, dict):
        properties, others = schema.get("properties"), schema.get("additionalProperties")
        found += [
            f"{path}.{name}: Required value" for name in schema.get("required", ()) if name not in value
        ]
        for name, item in value.items():
            child = (properties or {}).get(name, others)
            if child is not None:
                found += _refusals(item, child, f"{path}.{name}")
            elif properties is not None and path != ".metadata":
                found.append(f"{path}.{name}: unknown field")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _refusals(item, schema["items"], f"{path}[{index}]")
    yield from found
    if found:
        return  # a rule is not asked about what has another shape than it expects
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"]:
            if not rule.get("optionalOldSelf"):
                continue  # it compares with what was stored, and nothing was
            # celpy has no optional values: of a new object `oldSelf` has none, and the rest is not evaluated.
            rule = rule | {"rule": _OF_A_STORED_OBJECT.sub("", rule["rule"])}
        if not _holds(rule["rule"], json.dumps(value)):
            yield f"{path}{rule.get('fieldPath', '')}: {rule['message']}"


def _bounds(value: Any, schema: dict[str, Any]) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield "Unsupported value"
    # Go's `$` is the end of the text, Python's also the place before a last line break.
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", schema.get("pattern", "")), value):
        yield f"should match {schema['pattern']}"
    if isinstance(value, str | list | dict):
        ending = {str: "Length", list: "Items", dict: "Properties"}[type(value)]
        if len(value) > schema.get(f"max{ending}", len(value)):
            yield "too long"
        if len(value) < schema.get(f"min{ending}", 0):
            yield "too short"
    elif not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if value < low or (value == low and schema.get("exclusiveMinimum") is True):
            yield "too small"
        if value > high or (value == high and schema.get("exclusiveMaximum") is True):
            yield "too large"


_QUANTITIES: dict[str, Any] = {
    "isQuantity": lambda text: celpy.celtypes.BoolType(is_quantity(str(text))),
    "quantity": lambda text: celpy.celtypes.DoubleType(parse_quantity(str(text))),
    "isGreaterThan": lambda amount, other: celpy.celtypes.BoolType(amount > other),
    "isLessThan": lambda amount, other: celpy.celtypes.BoolType(amount < other),
}
"""Functions of Kubernetes that CEL itself has not."""


@cache
def _holds(rule: str, value: str) -> bool:
    return bool(_program(rule).evaluate({"self": celpy.json_to_cel(json.loads(value))}))


@cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule), functions=_QUANTITIES)
