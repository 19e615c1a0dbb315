"""The chart grants exactly the rights of the table in docs/operating.md."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Render = Callable[..., Any]
Right = tuple[str, str, str]
"""Group, resource with its subresource, verb."""


def rights(rules: Iterable[dict[str, Any]]) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def documented(where: str, *, switches: tuple[str, ...] = ()) -> set[Right]:
    """Rows of the table: group, resources, verbs, where, switch, what for."""
    section = (ROOT / "docs" / "operating.md").read_text().split("## Rights")[1].split("\n## ")[0]
    found: set[Right] = set()
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or cells[0] in ("group", "---"):
            continue
        group, resources, verbs, place, reason = cells
        switch = re.search(r"`(features\.\w+)`", reason)
        if place == where and (switch is None or switch[1] in switches):
            found |= {
                (group.strip("`").replace("core", ""), resource, verb)
                for resource in re.findall(r"`([\w/]+)`", resources)
                for verb in re.findall(r"`(\w+)`", verbs)
            }
    assert found, f"no row for {where}"
    return found


ALL_SWITCHES = ("features.jobSet", "features.kueue")
IN_NAMESPACES = "adaptations"
FOR_CLUSTER = "cluster"
AT_HOME = "release"


def test_a_whole_cluster_install_has_one_role_for_all_namespaces(render: Render) -> None:
    objects = render("whole-cluster")
    role = objects.one("ClusterRole", "dapt-system-dapt")
    assert rights(role["rules"]) == documented(IN_NAMESPACES) | documented(FOR_CLUSTER)
    assert {item["metadata"]["name"] for item in objects.of("Role")} == {"dapt-lease"}


def test_a_namespaces_install_has_a_role_in_each_and_reads_profiles(render: Render) -> None:
    objects = render("namespaces")
    assert rights(objects.one("ClusterRole", "dapt-system-dapt")["rules"]) == documented(FOR_CLUSTER)
    roles = [item for item in objects.of("Role") if item["metadata"]["name"] == "dapt-system-dapt"]
    assert [role["metadata"]["namespace"] for role in roles] == ["health", "law"]
    for role in roles:
        assert rights(role["rules"]) == documented(IN_NAMESPACES)


def test_switches_add_their_rights(render: Render) -> None:
    objects = render("everything")
    role = next(item for item in objects.of("Role") if item["metadata"]["namespace"] == "health")
    assert rights(role["rules"]) == documented(IN_NAMESPACES, switches=ALL_SWITCHES)
    assert documented(IN_NAMESPACES, switches=ALL_SWITCHES) > documented(IN_NAMESPACES)


@pytest.mark.parametrize("name", ["whole-cluster", "namespaces", "everything"])
def test_the_lease_is_in_the_releases_namespace_under_its_name(render: Render, name: str) -> None:
    objects = render(name)
    full_name = objects.one("Deployment")["metadata"]["name"]
    role = objects.one("Role", f"{full_name}-lease")
    assert role["metadata"]["namespace"] == "dapt-system"
    assert rights(role["rules"]) == documented(AT_HOME)
    named = [rule for rule in role["rules"] if rule["verbs"] != ["create"]]
    assert [rule["resourceNames"] for rule in named] == [[full_name]]
    (container,) = objects.one("Deployment")["spec"]["template"]["spec"]["containers"]
    assert f"--lease-name={full_name}" in container["args"]


@pytest.mark.parametrize("name", ["whole-cluster", "namespaces", "everything"])
def test_no_right_is_a_wildcard_and_no_secret_can_be_read(render: Render, name: str) -> None:
    objects = render(name)
    granted = rights(
        rule for kind in ("Role", "ClusterRole") for item in objects.of(kind) for rule in item["rules"]
    )
    assert not any("*" in part for right in granted for part in right)
    assert {verb for _, resource, verb in granted if resource == "secrets"} == {"create"}
    assert not {"escalate", "bind", "impersonate", "approve"} & {verb for _, _, verb in granted}
    assert not {"pods/exec", "pods/attach", "pods/ephemeralcontainers"} & {
        resource for _, resource, _ in granted
    }


@pytest.mark.parametrize("name", ["whole-cluster", "namespaces", "everything"])
def test_every_binding_binds_a_role_of_the_release_to_its_account(render: Render, name: str) -> None:
    objects = render(name)
    account = objects.one("ServiceAccount")["metadata"]
    roles = {
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        for kind in ("Role", "ClusterRole")
        for item in objects.of(kind)
    }
    bindings = [*objects.of("RoleBinding"), *objects.of("ClusterRoleBinding")]
    bound = {
        (item["roleRef"]["kind"], item["metadata"].get("namespace"), item["roleRef"]["name"])
        for item in bindings
    }
    aggregated = {role for role in roles if role[2].endswith(("-edit", "-view"))}
    assert bound == roles - aggregated
    for item in bindings:
        assert item["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]


def test_tenants_may_edit_adaptations_and_read_profiles_and_nothing_of_status(render: Render) -> None:
    objects = render()
    edit = objects.one("ClusterRole", "dapt-system-dapt-edit")
    assert {resource for _, resource, _ in rights(edit["rules"])} == {"domainadaptations"}
    view = objects.one("ClusterRole", "dapt-system-dapt-view")
    assert {verb for _, _, verb in rights(view["rules"])} == {"get", "list", "watch"}
    off = render("whole-cluster", "rbac.aggregateToUserRoles=false")
    assert [item["metadata"]["name"] for item in off.of("ClusterRole")] == ["dapt-system-dapt"]


def test_rights_can_be_granted_by_someone_else(render: Render) -> None:
    objects = render("whole-cluster", "rbac.create=false", "rbac.aggregateToUserRoles=false")
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & {
        item["kind"] for item in objects
    }
