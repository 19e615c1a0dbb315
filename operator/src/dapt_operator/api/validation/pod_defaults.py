"""Defines what every pod has where the profile's template says nothing, and finds where a template widens it.

The defaults keep the restricted Pod Security standard. They are here, below the launchers that render them, because
`lint` and `plan` warn of a template that widens them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dapt_operator.api.json_values import merged, plain
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.api.validation.pod_security import breaches
from dapt_operator.api.validation.pod_template import CONTAINER_LISTS, usable

_ASSIGNED_IDS: Final = ("runAsUser", "runAsGroup", "fsGroup")


def lifted_restrictions(profile: AdaptationProfileSpec) -> tuple[str, ...]:
    """Return one warning if the profile's template goes beyond the restricted standard; else nothing.

    The platform team may decide so, but the namespace has to allow it; the warning comes before pods are refused.
    """
    given: dict[str, Any] = plain(usable(profile.pod_template or {}))["spec"]
    breached = breaches(merged(pod_defaults(given, profile), given) | given_containers(given))
    if not breached:
        return ()
    return (
        f"spec.podTemplate of the profile goes beyond the restricted Pod Security standard ({', '.join(breached)}):"
        " its pods start only in namespaces that allow that",
    )


def given_containers(given: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the template's lists of containers, each container with the restricted security context as default."""
    return {
        name: [merged(container_defaults(), item) for item in given.get(name, [])] for name in CONTAINER_LISTS
    }


def pod_defaults(given: Mapping[str, Any], profile: AdaptationProfileSpec) -> dict[str, Any]:
    """Return what dapt sets in a PodSpec where the template does not.

    Args:
        given: PodSpec of the template.
        profile: it belongs to.
    """
    security: dict[str, Any] = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        # By default the kubelet changes the group of every file of the volume at each start of a pod.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if profile.platform_assigns_user_ids:
        security = {name: value for name, value in security.items() if name not in _ASSIGNED_IDS}
    defaults: dict[str, Any] = {
        # No process of a stage calls the API server.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": security,
    }
    if given.get("hostNetwork"):
        # With the default policy such a pod asks its node's resolver, which does not know the coordinator's name.
        defaults["dnsPolicy"] = "ClusterFirstWithHostNet"
    return defaults


def container_defaults() -> dict[str, Any]:
    """Return what dapt sets in every container where the template does not."""
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    }
