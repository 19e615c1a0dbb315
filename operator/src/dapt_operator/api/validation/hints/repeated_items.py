"""Warns about lists of a spec in which an item is there twice.

Such lists are accepted: resources that are stored have them, and the API server would refuse every further write of
those, the status too. What a second item does depends on the list: a source is read twice, a language counts once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dapt_operator.api.validation.hints.advice import schema_at
from dapt_operator.api.validation.problem import Problem, path_text, value_text
from dapt_operator.api.validation.yaml_source import Path, YamlDocument

_SPEC: Path = ("spec",)
_OTHERS: Path = ("spec", "podTemplate")
"""Kubernetes' own lists: arguments of a command may well be equal."""


def repetition_warnings(document: YamlDocument, schema: dict[str, Any]) -> list[Problem]:
    """Return a warning for each item that is in its list before. schema: structural schema of the document."""
    warnings = []
    for path, items in _lists(document.data):
        if path[:1] != _SPEC or path[:2] == _OTHERS or _has_fixed_length(schema_at(schema, path)):
            continue
        for index, item in enumerate(items):
            first = items.index(item)
            if first < index:
                value = "" if isinstance(item, dict) else f"{value_text(item)} of "
                text = f"it repeats {value}{path_text((*path, first))}; remove one of the two"
                warnings.append(
                    Problem(path_text((*path, index)), item, text, document.line_of((*path, index)))
                )
    return warnings


def _has_fixed_length(schema: dict[str, Any]) -> bool:
    """Whether each place of a list means something else, as with a pair of numbers."""
    return "maxItems" in schema and schema.get("minItems") == schema["maxItems"]


def _lists(data: object, path: Path = ()) -> Iterator[tuple[Path, list[object]]]:
    """Yield every list of a document with its path."""
    if isinstance(data, list):
        yield path, data
    children = enumerate(data) if isinstance(data, list) else data.items() if isinstance(data, dict) else ()
    for key, value in children:
        yield from _lists(value, (*path, key))
