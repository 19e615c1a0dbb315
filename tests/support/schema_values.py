"""Values for the fields of a schema: valid ones, and what people write by mistake."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Place = tuple[str | int, ...]
"""Names and indexes from the root to a field."""
ABSENT = object()
"""Stands for a field that is removed."""


WHOLE_OR_TEXT = "int-or-string"


def kind_of(node: Mapping[str, Any]) -> str:
    """The type of a schema's value; the one kind of node without a type takes whole numbers and texts."""
    return WHOLE_OR_TEXT if node.get("x-kubernetes-int-or-string") else str(node["type"])


def leaves(node: Mapping[str, Any], place: Place = ()) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Every field of a schema that has no fields of its own; of lists the first item, and the list itself."""
    if kind_of(node) == "object" and "properties" in node:
        for name, child in node["properties"].items():
            yield from leaves(child, (*place, name))
    elif kind_of(node) == "array":
        yield place, node
        yield from leaves(node["items"], (*place, 0))
    else:
        yield place, node


def values_of(node: Mapping[str, Any], current: Any) -> list[Any]:
    """At least six values for a leaf, valid and not, besides the one that it has."""
    kind = kind_of(node)
    if "enum" in node:
        found = [*node["enum"], "Nonsense", "", 7, True, ABSENT, [], None]
    elif kind in ("integer", "number"):
        low, high = node.get("minimum", 0), node.get("maximum", 100)
        step = 1 if kind == "integer" else 0.5
        middle = min(high, low + 3 * step)
        found = [low, high, low - 1, high + 1, middle, str(middle), "many", -1, ABSENT]
    elif kind == "boolean":
        found = [True, False, "yes", "true", 1, ABSENT, []]
    elif kind == "array":
        item = current[0] if current else {}
        found = [[], [item], [item, item], [item] * (node["maxItems"] + 1), {}, "text", ABSENT]
    elif kind == WHOLE_OR_TEXT:
        found = [8, 0, -1, 0.5, "0.5", "500m", "many", "8 cores", True, [], ABSENT]
    elif kind == "string":
        text = current if isinstance(current, str) else "a"
        longest = "a" * (node.get("maxLength", 253) + 1)
        found = [text + "2", text.upper() + "Z", "", " ", "two words", longest, 7, ABSENT, "a-1"]
    else:
        found = [{}, {"unknownField": 1}, "text", 7, [], ABSENT]
    return [
        value for value in found if value is ABSENT or value != current or type(value) is not type(current)
    ]


def refusal(node: Mapping[str, Any], value: Any, place: str = "spec") -> str:
    """Why the API server's structural schema refuses a value; empty when it accepts it."""
    kind = kind_of(node)
    types: dict[str, tuple[type, ...]] = {
        "object": (Mapping,),
        "array": (list,),
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        WHOLE_OR_TEXT: (int, str),
    }
    is_of_type = isinstance(value, types[kind])
    is_boolean = isinstance(value, bool)
    if not is_of_type or (is_boolean and kind != "boolean"):
        return f"{place} must be of type {kind}"
    if "enum" in node and value not in node["enum"]:
        return f"{place} is not one of {', '.join(map(str, node['enum']))}"
    if kind in ("integer", "number") or (kind == WHOLE_OR_TEXT and isinstance(value, int)):
        is_low = (
            value <= node["minimum"] if node.get("exclusiveMinimum") else value < node.get("minimum", value)
        )
        is_high = (
            value >= node["maximum"] if node.get("exclusiveMaximum") else value > node.get("maximum", value)
        )
        return f"{place} is out of range" if is_low or is_high else ""
    if kind in ("string", WHOLE_OR_TEXT):
        is_long = not node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value))
        is_other = "pattern" in node and re.search(node["pattern"], value) is None
        return f"{place} does not fit" if is_long or is_other else ""
    if kind == "array":
        if not node.get("minItems", 0) <= len(value) <= node.get("maxItems", len(value)):
            return f"{place} has {len(value)} items"
        problems = (refusal(node["items"], item, f"{place}[{i}]") for i, item in enumerate(value))
        return next(filter(None, problems), "")
    if kind == "object":
        return _refusal_of_object(node, value, place)
    return ""


def _refusal_of_object(node: Mapping[str, Any], value: Mapping[str, Any], place: str) -> str:
    missing = [name for name in node.get("required", ()) if name not in value]
    if missing:
        return f"{place}.{missing[0]} is required"
    properties, other = node.get("properties"), node.get("additionalProperties")
    for name, item in value.items():
        schema = (properties or {}).get(name) or other
        if schema is None:
            # kubectl asks the server to refuse what it does not know; a client that does not has it dropped.
            if properties is not None and not node.get("x-kubernetes-preserve-unknown-fields"):
                return f"{place}.{name} is unknown"
            continue
        if problem := refusal(schema, item, f"{place}.{name}"):
            return problem
    return ""


def at(value: Any, place: Place) -> Any:
    """What stands at a place; None where nothing does."""
    for step in place:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def with_value(value: Any, place: Place, new: Any) -> Any:
    """A copy with another value at a place; blocks on the way that are missing are made."""
    if not place:
        return new
    step, rest = place[0], place[1:]
    if isinstance(step, int):
        items: Sequence[Any] = value if isinstance(value, list) and value else [{}]
        changed = with_value(items[0], rest, new)
        return [*([] if changed is ABSENT else [changed]), *items[1:]]
    fields = dict(value) if isinstance(value, Mapping) else {}
    changed = with_value(fields.get(step), rest, new)
    fields.pop(step, None)
    return fields if changed is ABSENT else {**fields, step: changed}
