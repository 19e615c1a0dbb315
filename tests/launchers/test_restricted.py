"""Tests that every pod keeps the restricted Pod Security standard, and that a template that breaks it is reported."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_operator.api.validation.pod_defaults import lifted_restrictions
from dapt_operator.api.validation.pod_security import breaches
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.stage_run import plain
from support.launch_builders import profile
from support.launch_cases import CASES, rendered

KEPT: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "trainer",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}
FABRIC = "containers[trainer].securityContext.capabilities.add has IPC_LOCK"


def pod_of(launcher: str, case: str) -> dict[str, Any]:
    spec = plain(rendered(launcher, case)[-1]["spec"])
    if launcher == "JobSet":
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    found: dict[str, Any] = spec["template"]["spec"]
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_rendered_pod_keeps_the_restricted_standard(launcher: str, case: str) -> None:
    allowed = (FABRIC,) if case == "two-nodes-of-eight-gpus" else ()
    assert breaches(pod_of(launcher, case)) == allowed


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_container_has_a_read_only_root_and_no_pod_has_a_token(launcher: str, case: str) -> None:
    pod = pod_of(launcher, case)
    assert pod["automountServiceAccountToken"] is False
    assert all(item["securityContext"]["readOnlyRootFilesystem"] is True for item in pod["containers"])


def test_the_least_pod_that_keeps_the_standard_is_known() -> None:
    assert breaches(KEPT) == ()


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        ({"hostNetwork": True}, "hostNetwork is true"),
        ({"hostPID": True}, "hostPID is true"),
        ({"hostIPC": True}, "hostIPC is true"),
        ({"volumes": [{"name": "d", "hostPath": {"path": "/d"}}]}, "volume d is of kind hostPath"),
        ({"volumes": [{"name": "d", "nfs": {}}]}, "volume d is of kind nfs"),
    ],
)
def test_pod_field_that_breaks_the_standard_is_reported(change: dict[str, Any], breach: str) -> None:
    assert breaches(KEPT | change) == (breach,)


@pytest.mark.parametrize(
    ("context", "breach"),
    [
        ({"runAsUser": 0}, "runAsUser is 0"),
        ({"seLinuxOptions": {"type": "spc_t"}}, "seLinuxOptions sets user, role or a type of its own"),
        ({"appArmorProfile": {"type": "Unconfined"}}, "appArmorProfile is Unconfined"),
        ({"windowsOptions": {"hostProcess": True}}, "windowsOptions.hostProcess is true"),
        ({"sysctls": [{"name": "kernel.msgmax"}]}, "sysctls sets kernel.msgmax"),
    ],
)
def test_pod_security_context_that_breaks_the_standard_is_reported(
    context: dict[str, Any], breach: str
) -> None:
    pod = KEPT | {"securityContext": KEPT["securityContext"] | context}
    assert breaches(pod) == (f"securityContext.{breach}",)


@pytest.mark.parametrize(
    ("context", "breach"),
    [
        ({"privileged": True}, "privileged is true"),
        ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation is not false"),
        ({"capabilities": {}}, "capabilities.drop lacks ALL"),
        ({"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}, "capabilities.add has SYS_ADMIN"),
        ({"procMount": "Unmasked"}, "procMount is Unmasked"),
    ],
)
def test_container_security_context_that_breaks_the_standard_is_reported(
    context: dict[str, Any], breach: str
) -> None:
    container = KEPT["containers"][0]
    changed = container | {"securityContext": container["securityContext"] | context}
    assert breaches(KEPT | {"containers": [changed]}) == (f"containers[trainer].securityContext.{breach}",)


def test_bare_pod_breaks_every_required_field() -> None:
    where = "containers[trainer].securityContext"
    assert breaches({"containers": [{"name": "trainer"}]}) == (
        f"{where}.allowPrivilegeEscalation is not false",
        f"{where}.runAsNonRoot is not true",
        f"{where}.seccompProfile is absent",
        f"{where}.capabilities.drop lacks ALL",
    )


def test_a_profile_that_widens_the_standard_is_warned_about_once() -> None:
    fabric = {"name": "trainer", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}}
    disk = {"name": "disk", "hostPath": {"path": "/nvme"}}
    assert lifted_restrictions(
        profile(podTemplate={"spec": {"containers": [fabric], "volumes": [disk]}})
    ) == (
        "spec.podTemplate of the profile goes beyond the restricted Pod Security standard (volume disk is of kind"
        f" hostPath, {FABRIC}): its pods start only in namespaces that allow that",
    )
    assert lifted_restrictions(profile()) == ()
    assert lifted_restrictions(profile(podTemplate={"spec": {"nodeSelector": {"gpu": "h100"}}})) == ()


@pytest.mark.parametrize(
    "odd", [{"volumes": [5]}, {"containers": {}}, {"securityContext": []}, {"hostNetwork": "x"}]
)
def test_an_odd_template_is_no_matter_here(odd: dict[str, Any]) -> None:
    assert lifted_restrictions(profile(podTemplate={"spec": odd})) == ()
