"""What a real kubelet looks for before it starts a container, and how it says that it is not there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

Waiting = tuple[str, str]
"""Reason and message of a waiting container."""
Find = Callable[[str, str], Awaitable[Mapping[str, Any] | None]]
"""Reads an object by plural and name; None when it is not there."""

CONTAINERS = ("initContainers", "containers")


async def what_is_missing(spec: Mapping[str, Any], find: Find) -> Waiting | None:
    """Why the containers of a pod cannot start; None when everything is there."""
    for plural, name in _mounted(spec):
        if await find(plural, name) is None:
            return ("ContainerCreating", "")  # the reason is told by an Event alone
    for plural, name, key in _environment(spec):
        found = await find(plural, name)
        kind = {"secrets": "secret", "configmaps": "configmap"}[plural]
        if found is None:
            return ("CreateContainerConfigError", f'{kind} "{name}" not found')
        if key and key not in (found.get("data") or {}):
            where = f"{found['metadata']['namespace']}/{name}"
            return ("CreateContainerConfigError", f"couldn't find key {key} in {kind.capitalize()} {where}")
    return None


def _mounted(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for volume in spec.get("volumes") or []:
        for source, plural, field in (
            ("configMap", "configmaps", "name"),
            ("secret", "secrets", "secretName"),
        ):
            wanted = volume.get(source)
            if wanted is not None and not wanted.get("optional"):
                yield plural, wanted[field]


def _environment(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    sources = (("secret", "secrets"), ("configMap", "configmaps"))
    for container in [item for group in CONTAINERS for item in spec.get(group) or []]:
        for source, plural in sources:
            for item in container.get("envFrom") or []:
                wanted = item.get(f"{source}Ref")
                if wanted is not None and not wanted.get("optional"):
                    yield plural, wanted["name"], ""
            for item in container.get("env") or []:
                wanted = (item.get("valueFrom") or {}).get(f"{source}KeyRef")
                if wanted is not None and not wanted.get("optional"):
                    yield plural, wanted["name"], wanted["key"]
