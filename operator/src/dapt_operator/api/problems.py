"""One problem of a manifest, and the words for values and for what a field accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dapt_operator.api.base import PATTERNS
from dapt_operator.api.manifest import Path

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field.

    field: path in the manifest, such as spec.corpus.domain[0].source. value: what stands there, None when nothing
    does. message: what is accepted and the next step. line: from 1.
    """

    field: str
    value: Any
    message: str
    line: int
    prefix: str = ""
    shows_value: bool = False

    def __str__(self) -> str:
        """`spec.seed (line 4): 'abc' is not accepted; write ...`."""
        value = f"{value_text(self.value)} is not accepted; " if self.shows_value else ""
        return f"{self.prefix}{self.field or 'document'} (line {self.line}): {value}{self.message}"


def path_text(path: Path) -> str:
    """('spec', 'corpus', 'domain', 0) -> spec.corpus.domain[0]."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def value_text(value: Any) -> str:
    """A value as it is written in YAML, shortened: texts in quotes, blocks and lists by name."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a block" if value else "an empty block"
    if isinstance(value, list):
        return f"a list of {len(value)} items" if value else "an empty list"
    if isinstance(value, str):
        shown = value if len(value) <= _SHOWN_CHARACTERS else value[: _SHOWN_CHARACTERS - 3] + "..."
        return repr(shown)
    return str(value)


def accepted_text(node: dict[str, Any], value: Any = None) -> str:
    """What a field accepts, in words, from its schema. value: what was written, to name the bound that it breaks."""
    if "enum" in node:
        values = [str(value) for value in node["enum"]]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    kind = node.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range_text(node)
    if kind == "boolean":
        return "true or false"
    if kind == "array":
        return f"a list{_count_text(node.get('minItems', 0), node.get('maxItems'), 'items')}"
    if kind == "object":
        names = list(node.get("properties", {}))
        return f"a block with {_listed(names)}" if names else "an empty block, {}"
    if node.get("pattern") in PATTERNS:
        limit = node.get("maxLength")
        too_long = limit is not None and isinstance(value, str) and len(value) > limit
        return PATTERNS[node["pattern"]] + (f", at most {limit} characters" if too_long else "")
    return f"a text{_count_text(node.get('minLength', 0), node.get('maxLength'), 'characters')}"


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return f"the field {names[0]}"
    return f"the fields {', '.join(names[:-1])} and {names[-1]}"


def _count_text(least: int, most: int | None, unit: str) -> str:
    if most is None:
        return f" of at least {least} {unit}" if least else ""
    if least == most:
        return f" of {most} {unit}"
    return f" of {least} to {most} {unit}" if least else f" of at most {most} {unit}"


def _range_text(node: dict[str, Any]) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is None or high is None:
        return ""
    if not node.get("exclusiveMinimum") and not node.get("exclusiveMaximum"):
        return f" from {low} to {high}"
    start = f" above {low}" if node.get("exclusiveMinimum") else f" of at least {low}"
    end = f" and below {high}" if node.get("exclusiveMaximum") else f" and at most {high}"
    return start + end
