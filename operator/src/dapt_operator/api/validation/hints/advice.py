"""Describes one change of a document that a message proposes, so that it can be tried before it is proposed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dapt_operator.api.validation.yaml_source import Path

_ABSENT = object()


@dataclass(frozen=True)
class Advice:
    """A change of a document.

    Attributes:
        text: what the message proposes, as an imperative sentence.
        added: (path, value) of every field that the change writes; blocks around it are made where they are missing.
        removed: path of the field that the change takes away; empty: none.
    """

    text: str
    added: tuple[tuple[Path, object], ...]
    removed: Path = ()

    def applied(self, data: object) -> object:
        """Return a changed copy of a document's data; what does not change is shared with the original."""
        changed = _without(data, self.removed) if self.removed else data
        for path, value in self.added:
            changed = _with(changed, path, value)
        return changed

    def overwrites(self, data: object) -> bool:
        """Return whether a field that the change writes is there already, other than the one that it takes away."""
        return any(
            path != self.removed and value_at(data, path) not in (_ABSENT, None) for path, _ in self.added
        )


Trial = Callable[[Advice], bool]
"""Returns whether a document has no new problem after a change."""


def value_at(data: object, path: Path) -> object:
    """Return the value at a path, or a mark that equals nothing else where there is none."""
    for part in path:
        is_item = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not is_item and not (isinstance(data, dict) and part in data):
            return _ABSENT
        data = data[part]  # type: ignore[index]
    return data


def has_value(data: object, path: Path) -> bool:
    """Return whether there is a value at a path."""
    return value_at(data, path) is not _ABSENT


def schema_at(schema: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the part of a structural schema that describes a field; empty where it describes none."""
    for part in path:
        if isinstance(part, int):
            schema = schema.get("items", {})
        else:
            child = schema.get("properties", {}).get(part)
            schema = child if child is not None else schema.get("additionalProperties", {})
        if not isinstance(schema, dict):
            return {}
    return schema


def leaves(data: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Yield every value of a document that is no block and no list, with its path."""
    children: Iterator[tuple[str | int, object]]
    if isinstance(data, dict):
        children = iter(data.items())
    elif isinstance(data, list):
        children = iter(enumerate(data))
    else:
        yield path, data
        return
    for key, value in children:
        yield from leaves(value, (*path, key))


def _without(data: object, path: Path) -> object:
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        return [_without(item, rest) if index == head else item for index, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    if not rest:
        return {key: value for key, value in data.items() if key != head}
    return {key: _without(value, rest) if key == head else value for key, value in data.items()}


def _with(data: object, path: Path, value: object) -> object:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(head, int) and not isinstance(data, list):
        return [_with(None, rest, value)]
    if isinstance(data, list):
        return [_with(item, rest, value) if index == head else item for index, item in enumerate(data)]
    block = data if isinstance(data, dict) else {}
    return {**block, head: _with(block.get(head), rest, value)}
