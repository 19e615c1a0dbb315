"""From pydantic's errors to problems in words, and from a wrong document to one that can be judged further."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from dapt_operator.api.schema.crd import structural
from dapt_operator.api.v1alpha1.base import (
    CANDIDATE_PATTERN,
    DESTINATION_PATTERN,
    MODEL_PATTERN,
    PATTERNS,
    QUANTITY_PATTERN,
    TIME_PATTERN,
)
from dapt_operator.api.validation.problem import Problem, accepted_text, path_text, value_text
from dapt_operator.api.validation.yaml_source import Path, YamlDocument

PROFILE_FIELDS: Final = frozenset(
    {
        "affinity",
        "automountServiceAccountToken",
        "command",
        "containers",
        "env",
        "envFrom",
        "environment",
        "hostNetwork",
        "image",
        "imagePullSecrets",
        "initContainers",
        "nodeSelector",
        "podSpec",
        "podTemplate",
        "runtimeClassName",
        "securityContext",
        "serviceAccount",
        "serviceAccountName",
        "tolerations",
        "trainerImage",
        "volumeMounts",
        "volumes",
    }
)
"""Names from pod templates. In a DomainAdaptation they are refused as the profile's, not as typing errors."""

REASONS: Final[dict[str, str]] = {
    "spec.corpus.general": "without general text forgetting cannot be measured",
    "spec.output.destination": "the finished model has to go somewhere",
}
"""Why a field is required, where the field's name does not say it."""

_EXAMPLES: Final = {
    MODEL_PATTERN: "hf://org/name",
    DESTINATION_PATTERN: "s3://bucket/folder",
    QUANTITY_PATTERN: "1",
    CANDIDATE_PATTERN: "a1-s1",
    TIME_PATTERN: "2026-01-01T00:00:00Z",
}


@lru_cache
def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a model, metadata included."""
    return structural(model)


@dataclass
class Repairs:
    """What was found in one document, and which fields were replaced for it."""

    document: YamlDocument
    model: type[BaseModel]
    problems: list[Problem] = field(default_factory=list)
    replaced: set[Path] = field(default_factory=set)

    def touch(self, path: Path) -> bool:
        """Whether a field, something in it or a block around it was replaced, so that it cannot be judged."""
        return any(path[: len(other)] == other or other[: len(path)] == path for other in self.replaced)

    def echoes(self, path: Path) -> bool:
        """Whether a field lies in something that was replaced: then its problem is ours."""
        return any(path[: len(other)] == other for other in self.replaced)


def repair(data: dict[str, Any], error: ValidationError, repairs: Repairs) -> None:
    """Records the problems of one validation and changes `data` in place so that the next one finds the rest.

    Within one list wrong items are replaced, never removed, so that the places of the others stay.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # Unknown names first: a required field that is missing because its name is misspelled is one problem, not two.
    for detail in sorted(details, key=lambda detail: detail["type"] != "extra_forbidden"):
        path: Path = detail["loc"]
        node = _schema_at(schema_of(repairs.model), path)
        if detail["type"] == "extra_forbidden":
            _unknown_field(data, path, repairs)
        elif detail["type"] == "missing":
            if not repairs.echoes(path):
                repairs.problems.append(_missing(path, node, repairs.document))
            _block_at(data, path[:-1])[path[-1]] = _example(node)
            repairs.replaced.add(path)
        elif not _counts_only_good_items(detail["type"], _block_at(data, path), node):
            _wrong_value(data, path, node, repairs)


def _counts_only_good_items(kind: str, value: Any, node: dict[str, Any]) -> bool:
    """Whether a list is called too short only because pydantic does not count its wrong items."""
    return kind == "too_short" and isinstance(value, list) and len(value) >= node.get("minItems", 0)


def _unknown_field(data: dict[str, Any], path: Path, repairs: Repairs) -> None:
    parent, name = path[:-1], str(path[-1])
    known = list(_schema_at(schema_of(repairs.model), parent).get("properties", {}))
    value = _block_at(data, parent).pop(name)
    near = get_close_matches(name, known, n=1, cutoff=0.65)
    near = near or [other for other in known if other.lower().startswith(name.lower())][:1]
    if near:
        repairs.replaced.add((*parent, near[0]))
    if repairs.echoes(path):
        return
    line = repairs.document.line_of(path)
    message = _unknown_message(parent, name, known, near, repairs.model)
    repairs.problems.append(Problem(path_text(path), value, message, line))


def _unknown_message(
    parent: Path, name: str, known: list[str], near: list[str], model: type[BaseModel]
) -> str:
    in_adaptation = "suspend" in schema_of(model)["properties"]["spec"]["properties"]
    if in_adaptation and parent[:1] == ("spec",):
        if name in PROFILE_FIELDS:
            return (
                "belongs to the profile, which the platform team writes; remove it here and ask for it in the"
                " AdaptationProfile"
            )
        if name == "namespace":
            return "belongs to metadata.namespace; move it there"
        if parent == ("spec", "stageResources") or parent[:2] == ("spec", "stageResources"):
            stage = str(parent[-1])
            if name == "gpus" and stage in ("prepare", "publish"):
                return f"{stage} takes no GPU; remove it"
    if near:
        return f"unknown field; nearest known name is {near[0]!r}; rename or remove it"
    elsewhere = [place for place in _places(schema_of(model), name) if place[:1] == ("spec",)]
    if elsewhere:
        return f"unknown field here; it is known as {path_text(elsewhere[0])}; move it there"
    if not known:
        return "unknown field; this block has no fields; remove it"
    return f"unknown field; known here: {', '.join(known)}; remove it"


def _places(node: dict[str, Any], name: str, path: Path = ()) -> Iterator[Path]:
    """Where in the schema a field of this name is known, outer places first."""
    properties = node.get("properties", {})
    if name in properties:
        yield (*path, name)
    for key, child in properties.items():
        if key != "status":
            yield from _places(child, name, (*path, key))


def _missing(path: Path, node: dict[str, Any], document: YamlDocument) -> Problem:
    text = path_text(path)
    reason = f": {REASONS[text]}" if text in REASONS else ""
    return Problem(
        text,
        None,
        f"missing, but required{reason}; add it: {accepted_text(node)}",
        document.line_of(path),
    )


def _wrong_value(data: dict[str, Any], path: Path, node: dict[str, Any], repairs: Repairs) -> None:
    parent, key = _block_at(data, path[:-1]), path[-1]
    value = parent[key]
    if not repairs.echoes(path):
        text = path_text(path)
        message = f"write {accepted_text(node, value)}{_near(value, node)}"
        message += _otherwise(path, node, repairs.model)
        if text in REASONS and isinstance(value, list) and not value:
            message += f": {REASONS[text]}"
        line = repairs.document.line_of(path)
        repairs.problems.append(Problem(text, value, message, line, shows_value=True))
    repairs.replaced.add(path)
    if isinstance(key, int) or _is_required(path, repairs.model):
        parent[key] = _example(node)
    else:
        del parent[key]


def _near(value: Any, node: dict[str, Any]) -> str:
    if isinstance(value, str) and len(node.get("enum", ())) > 1:
        near = get_close_matches(value.lower(), {str(item).lower(): item for item in node["enum"]}, n=1)
        names = {str(item).lower(): str(item) for item in node["enum"]}
        return f" (nearest: {names[near[0]]})" if near else ""
    return ""


def _otherwise(path: Path, node: dict[str, Any], model: type[BaseModel]) -> str:
    """What leaving the field out would mean, where it can be left out."""
    if isinstance(path[-1], int) or _is_required(path, model):
        return ""
    default = node.get("default")
    if default is None or isinstance(default, dict | list):
        return ", or leave the field out"
    return f", or leave the field out for {default if isinstance(default, str) else value_text(default)}"


def _is_required(path: Path, model: type[BaseModel]) -> bool:
    return path[-1] in _schema_at(schema_of(model), path[:-1]).get("required", ())


def _schema_at(node: dict[str, Any], path: Path) -> dict[str, Any]:
    for part in path:
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            child = node.get("properties", {}).get(part)
            node = child if child is not None else node.get("additionalProperties", {})
        if not isinstance(node, dict):
            return {}
    return node


def _block_at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _example(node: dict[str, Any]) -> Any:
    """Some value that the schema accepts, to judge the rest of a document with. It is never shown."""
    if "default" in node:
        return deepcopy(node["default"])
    if "enum" in node:
        return node["enum"][0]
    kind = node.get("type")
    if kind == "object":
        return {name: _example(node["properties"][name]) for name in node.get("required", ())}
    if kind == "array":
        return [_example(node.get("items", {})) for _ in range(node.get("minItems", 0))]
    if kind == "integer":
        return max(1, node.get("minimum", 1))
    if kind == "number":
        low, high = node.get("minimum", 0), node.get("maximum", 1)
        return (low + high) / 2
    if kind == "boolean":
        return False
    if node.get("pattern") in PATTERNS:
        return _EXAMPLES.get(node["pattern"], "s3://bucket/x" if "s3" in node["pattern"] else "x")
    return "x"
