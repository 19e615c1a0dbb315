"""Checks that a stored object has maps and lists where an API server would have made sure of them.

The planner reads objects as an API server gives them. In a run folder that somebody sent, anything may stand there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic import JsonValue

_PODS: Final = frozenset({"Job", "JobSet", "Pod"})
"""Kinds whose fields are read one by one; of the resource, its models check everything but its versions."""
_MAPS: Final = frozenset(
    {
        "annotations",
        "labels",
        "limits",
        "metadata",
        "requests",
        "resources",
        "running",
        "spec",
        "state",
        "status",
        "template",
        "terminated",
        "valueFrom",
        "waiting",
    }
)
_LISTS: Final = frozenset(
    {
        "conditions",
        "containerStatuses",
        "containers",
        "env",
        "envFrom",
        "initContainers",
        "ownerReferences",
        "ports",
        "volumeMounts",
        "volumes",
    }
)
"""Names of lists of maps."""
_MAX_DIGITS: Final = 18


def shape_problem(stored: dict[str, JsonValue]) -> str:
    """Return which field of an object has another type than it would have from an API server; empty for none."""
    if stored.get("kind") in _PODS:
        return next(_wrong_fields(stored), "")
    metadata = stored.get("metadata")
    if stored.get("kind") == "DomainAdaptation" and isinstance(metadata, dict):
        version, generation = metadata.get("resourceVersion"), metadata.get("generation")
        if not isinstance(version, str) or not version.isdecimal() or len(version) > _MAX_DIGITS:
            return "metadata.resourceVersion"
        if not isinstance(generation, int) or generation >= 10**_MAX_DIGITS:
            return "metadata.generation"
    return ""


def _wrong_fields(stored: dict[str, JsonValue]) -> Iterator[str]:
    waiting: list[dict[str, JsonValue]] = [stored]
    while waiting:
        for name, value in waiting.pop().items():
            if name in _MAPS and value is not None and not isinstance(value, dict):
                yield name
            elif name in _LISTS and value is not None:
                if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                    yield name
                # The status of a condition is a text.
                elif name != "conditions":
                    waiting += [item for item in value if isinstance(item, dict)]
            if isinstance(value, dict):
                waiting.append(value)
