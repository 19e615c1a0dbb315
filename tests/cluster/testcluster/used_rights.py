"""What a service account may do, and what the audit log says that it did."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from testcluster.control_plane import ControlPlane


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one kind of resource in one place."""

    namespace: str
    """Empty: of the cluster's scope or in every namespace."""
    group: str
    resource: str
    """With its subresource: `pods/log`."""
    verb: str


def granted(plane: ControlPlane, user: str) -> set[Right]:
    """By every role that is bound to a service account by name."""
    api = plane.api
    found: set[Right] = set()
    for kind, bindings in (("ClusterRole", "ClusterRoleBinding"), ("Role", "RoleBinding")):
        for binding in api.list(bindings):
            if user not in _users(binding):
                continue
            namespace = binding["metadata"].get("namespace", "")
            assert binding["roleRef"]["kind"] == kind
            role = api.get(kind, binding["roleRef"]["name"], namespace)
            found |= {
                Right(namespace, group, resource, verb)
                for rule in role["rules"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return found


def _users(binding: dict[str, Any]) -> set[str]:
    return {
        f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
        for subject in binding.get("subjects") or []
        if subject["kind"] == "ServiceAccount"
    }


def used(plane: ControlPlane, user: str, since: int) -> tuple[set[Right], set[Right]]:
    """By the audit log from a mark on: what was allowed, and what was forbidden."""
    allowed: set[Right] = set()
    forbidden: set[Right] = set()
    for line in _lines(plane, since):
        reference = line.get("objectRef") or {}
        if line["user"]["username"] != user or not reference.get("resource"):
            continue
        code = (line.get("responseStatus") or {}).get("code", 0)
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        verbs = [line["verb"]]
        if line["verb"] == "patch" and code == 201:
            verbs.append("create")  # an apply that creates needs both
        for verb in verbs:
            right = Right(reference.get("namespace", ""), reference.get("apiGroup", ""), resource, verb)
            (forbidden if code == 403 else allowed).add(right)
    return allowed, forbidden


def _lines(plane: ControlPlane, since: int) -> Iterator[dict[str, Any]]:
    with plane.audit.path.open("rb") as file:
        file.seek(since)
        for line in file:
            if line.endswith(b"\n"):  # the last line may be half written
                yield json.loads(line)


def anywhere(rights: Iterable[Right]) -> set[Right]:
    """The same rights without their places."""
    return {Right("", right.group, right.resource, right.verb) for right in rights}


def told(rights: Iterable[Right]) -> list[str]:
    """For a message."""
    return [
        f"{right.verb} {'/'.join(filter(None, (right.group, right.resource)))}"
        + (f" in {right.namespace}" if right.namespace else "")
        for right in sorted(rights)
    ]
