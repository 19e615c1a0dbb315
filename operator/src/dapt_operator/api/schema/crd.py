"""Generates the CustomResourceDefinitions from the models: structural schemas with defaults, bounds and CEL rules.

`render()` returns text and writes nothing. A structural schema has one type for each value and no references,
so references are written out and 'or null' is dropped: an absent field is how this API expresses 'automatic'.
"""

from __future__ import annotations

import json
import re
from io import StringIO
from textwrap import wrap
from typing import Any, Final

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from dapt_operator.api.schema import immutable
from dapt_operator.api.v1alpha1.base import API_GROUP, HOST_PATTERN, VERSION, camel_case
from dapt_operator.api.v1alpha1.profile import AdaptationProfile
from dapt_operator.api.v1alpha1.spec import DomainAdaptation
from dapt_operator.api.v1alpha1.stored.resource import StoredAdaptation

HEADER: Final = "# Generated from the models in dapt_operator.api; `dapt crd` prints it. Do not edit.\n"

ADAPTATION_FILE: Final = "dapt.dev_domainadaptations.yaml"
PROFILE_FILE: Final = "dapt.dev_adaptationprofiles.yaml"

_KEPT: Final = (
    "type",
    "description",
    "default",
    "enum",
    "format",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
)
"""Keys that are copied unchanged."""

_HANDLED: Final = (
    "$ref",
    "$defs",
    "anyOf",
    "const",
    "title",
    "properties",
    "items",
    "additionalProperties",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "ge",
    "le",
)
"""Keys that are rewritten or dropped below. Any other key is a mistake in the models, and an error."""


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of one model.

    Raises:
        ValueError: the model has something that a structural schema cannot express, such as a union.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(schema, schema.get("$defs", {}))


def _structural(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    unknown = set(node) - set(_KEPT) - set(_HANDLED)
    if unknown:
        raise ValueError(f"not structural: {sorted(unknown)} in {node}")
    result: dict[str, Any] = {}
    if "$ref" in node:
        result = _structural(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    if "anyOf" in node:
        choices = [choice for choice in node["anyOf"] if choice != {"type": "null"}]
        if len(choices) != 1:
            raise ValueError(f"not structural: a union of types in {node}")
        result = _structural(choices[0], definitions)
    for key in _KEPT:
        if key in node and not (key == "default" and node[key] is None):
            result[key] = node[key]
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    if node.get("x-kubernetes-int-or-string"):
        # The one union that a structural schema may have; tools that know JSON Schema alone read it.
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "const" in node:
        result["enum"] = [node["const"]]
    for bound, limit in (("ge", "minimum"), ("le", "maximum")):
        # pydantic leaves its own names for bounds in the schema of a type that has a validator, as `Integer` has.
        if bound in node:
            result[limit] = node[bound]
    for exclusive, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            result[inclusive] = node[exclusive]
            result[exclusive] = True
    if "properties" in node:
        result["properties"] = {
            name: _structural(child, definitions) for name, child in node["properties"].items()
        }
    if "items" in node:
        result["items"] = _structural(node["items"], definitions)
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    return result


def render_manifest_schema() -> str:
    """Return the text of `manifest_schema.json`: the schema of each kind of manifest."""
    schemas = {model.__name__: _manifest_schema(model) for model in (DomainAdaptation, AdaptationProfile)}
    return json.dumps(schemas, indent=1, ensure_ascii=False) + "\n"


def _manifest_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of a manifest: of a resource without its status, which is half of it."""
    properties: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        block = field.annotation
        if isinstance(block, type) and issubclass(block, BaseModel):
            properties[camel_case(name)] = structural(block)
        else:
            properties[camel_case(name)] = {"type": "string", "enum": [field.default]}
    required = [camel_case(name) for name, field in model.model_fields.items() if field.is_required()]
    return {"type": "object", "properties": properties, "required": required}


_NAME: Final = {
    "type": "string",
    "maxLength": 253,
    "description": "Name of the object, at most 63 characters.",
}
"""Schema of metadata.name. The API server checks the name anyway; it is declared so that a rule can point at it."""


def object_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a whole resource; Kubernetes' own fields are left to Kubernetes."""
    schema = structural(model)
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["properties"]["metadata"] = {"type": "object", "properties": {"name": dict(_NAME)}}
    schema["required"] = ["spec"]
    return schema


_NAME_RULE: Final = {
    # A name cannot change. An object that was stored before a rule is asked no more: the root differs at each write of
    # the status and at each removal of a finalizer, so the API server would refuse these, and nobody could mend it.
    "rule": "oldSelf.hasValue() || self.metadata.name.size() <= 63",
    "optionalOldSelf": True,
    "message": "metadata.name must not be longer than 63 characters, since every child carries it as a label",
    "fieldPath": ".metadata.name",
}

_HOST_RULE: Final = {
    "rule": f"oldSelf.hasValue() || self.metadata.name.matches('{HOST_PATTERN}')",
    "optionalOldSelf": True,
    "message": "metadata.name must be lower-case letters, digits and '-', a letter first and no dots, since it begins"
    " the host names of its pods",
    "fieldPath": ".metadata.name",
}

_Column = tuple[str, str, str, str, bool]
"""Name, type, JSON path, description, and whether it is shown by `-o wide` alone."""

_COLUMNS: Final[tuple[_Column, ...]] = (
    (
        "Ready",
        "string",
        '.status.conditions[?(@.type=="Ready")].status',
        "Whether the model is published.",
        False,
    ),
    ("Phase", "string", ".status.phase", "Summary of the conditions, for people.", False),
    (
        "Reason",
        "string",
        '.status.conditions[?(@.type=="Reconciling")].reason',
        "What is in progress, what it waits for, or why nothing is in progress.",
        False,
    ),
    ("Stage", "string", ".status.stages[-1:].name", "The stage that was started last.", False),
    ("Progress", "number", ".status.progress.fraction", "Share of pretraining that is done.", False),
    ("ETA", "number", ".status.progress.etaSeconds", "Seconds that are left of pretraining.", False),
    (
        "Forgetting",
        "number",
        ".status.forgetting",
        "Rise of general perplexity over the base model's.",
        False,
    ),
    ("Gain", "number", ".status.gain", "Gain in the domain, by which candidates are ranked.", False),
    ("Attempt", "integer", ".status.attempt", "Number of the newest attempt.", True),
    ("GPU-Hours", "number", ".status.usage.gpuHours", "Accelerator-hours that were used.", True),
    ("Selected", "string", ".status.selected.id", "The candidate that was chosen.", True),
    ("Profile", "string", ".status.resolved.profile", "The profile that it runs on.", True),
    (
        "Message",
        "string",
        '.status.conditions[?(@.type=="Reconciling")].message',
        "The same as the reason, in one sentence.",
        True,
    ),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was created.", False),
)

_PROFILE_COLUMNS: Final[tuple[_Column, ...]] = (
    ("Kind", "string", ".spec.accelerator.kind", "gpu or cpu.", False),
    ("Per-Node", "integer", ".spec.accelerator.perNode", "Accelerators, or processes, of a node.", False),
    ("GiB", "number", ".spec.accelerator.memoryGiB", "Memory of an accelerator.", False),
    ("Launcher", "string", ".spec.launcher", "What runs a stage.", False),
    ("Max-Nodes", "integer", ".spec.limits.nodes", "Nodes that a stage may use.", False),
    (
        "Max-GPU-Hours",
        "number",
        ".spec.limits.gpuHours",
        "Accelerator-hours that an adaptation may use.",
        False,
    ),
    (
        "Default",
        "string",
        r".metadata.annotations.dapt\.dev/default",
        "Whether it serves adaptations that name no profile.",
        False,
    ),
    ("Image", "string", ".spec.trainerImage", "The trainer's image.", True),
    ("Namespaces", "string", ".spec.limits.namespaces", "Namespaces that it serves.", True),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was created.", False),
)


def _columns(columns: tuple[_Column, ...]) -> list[dict[str, Any]]:
    return [
        {"name": name, "type": type_, "jsonPath": path, "description": description}
        | ({"priority": 1} if is_wide else {})
        for name, type_, path, description, is_wide in columns
    ]


_NOT_OBSERVED: Final = {"observedGeneration": -1}
"""Status of an adaptation that no operator has reconciled. Tools that wait for a result compare the observed generation
with the spec's; without one they take a new object for finished."""


def _definition(
    *,
    plural: str,
    singular: str,
    kind: str,
    scope: str,
    names: dict[str, Any],
    version: dict[str, Any],
) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": singular,
            }
            | names,
            "scope": scope,
            "versions": [{"name": VERSION, "served": True, "storage": True} | version],
        },
    }


def _unless_stored(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a rule that lets an object keep what breaks it, so that the other fields of its spec can be edited.

    The API server itself asks no rule of a part that did not change. Of the spec any field is a part, and the rule
    would keep somebody from suspending an adaptation that is older than the rule.
    """
    of_the_old = re.sub(r"\bself\b", "oldSelf.value()", rule["rule"])
    return rule | {
        "rule": f"({rule['rule']}) || (oldSelf.hasValue() && !({of_the_old}))",
        "optionalOldSelf": True,
    }


def adaptation_definition() -> dict[str, Any]:
    """Return the CustomResourceDefinition of DomainAdaptation, as data."""
    schema = object_schema(StoredAdaptation)
    spec = schema["properties"]["spec"]
    # One writer writes it as a whole. To note who owns which of its fields took a fifth of the bytes of a new object,
    # and time of the API server at each write.
    schema["properties"]["status"]["x-kubernetes-map-type"] = "atomic"
    spec["x-kubernetes-validations"] = [_unless_stored(rule) for rule in spec["x-kubernetes-validations"]]
    status = schema["properties"]["status"]
    status["default"] = _NOT_OBSERVED | {
        name: child["default"] for name, child in status["properties"].items() if "default" in child
    }
    schema["x-kubernetes-validations"] = [
        dict(_NAME_RULE),
        dict(_HOST_RULE),
        *(
            {
                "rule": immutable.cel(block),
                "message": immutable.message(block),
                "fieldPath": f".spec.{block}",
            }
            for block in immutable.FROZEN_BLOCKS
        ),
    ]
    return _definition(
        plural="domainadaptations",
        singular="domainadaptation",
        kind="DomainAdaptation",
        scope="Namespaced",
        names={"shortNames": ["da"], "categories": ["training"]},
        version={
            "subresources": {"status": {}},
            "additionalPrinterColumns": _columns(_COLUMNS),
            "schema": {"openAPIV3Schema": schema},
        },
    )


def profile_definition() -> dict[str, Any]:
    """Return the CustomResourceDefinition of AdaptationProfile, as data."""
    schema = object_schema(AdaptationProfile)
    schema["x-kubernetes-validations"] = [dict(_NAME_RULE)]
    return _definition(
        plural="adaptationprofiles",
        singular="adaptationprofile",
        kind="AdaptationProfile",
        scope="Cluster",
        names={"shortNames": ["ap"], "categories": ["training"]},
        version={
            "additionalPrinterColumns": _columns(_PROFILE_COLUMNS),
            "schema": {"openAPIV3Schema": schema},
        },
    )


def render() -> dict[str, str]:
    """Return file name -> YAML of every CustomResourceDefinition. Deterministic; writes nothing."""
    return {
        ADAPTATION_FILE: _to_yaml(adaptation_definition()),
        PROFILE_FILE: _to_yaml(profile_definition()),
    }


def _to_yaml(definition: dict[str, Any]) -> str:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 10_000  # a folded plain scalar ends lines with spaces; long descriptions are blocks instead
    yaml.indent(mapping=2, sequence=2, offset=0)
    yaml.representer.ignore_aliases = lambda *_: True
    out = StringIO()
    yaml.dump(_with_blocks(definition), out)
    return HEADER + out.getvalue()


def _with_blocks(node: Any) -> Any:
    """Return the node with long descriptions as wrapped literal blocks, as Kubernetes' own generator writes them."""
    if isinstance(node, list):
        return [_with_blocks(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: LiteralScalarString("\n".join(wrap(value, 90)))
        if key == "description" and isinstance(value, str) and len(value) > 90
        else _with_blocks(value)
        for key, value in node.items()
    }
