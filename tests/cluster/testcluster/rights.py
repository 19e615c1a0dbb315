"""What the chart grants: an operator of the tests can do no more than an installed one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from testcluster.control_plane import ROOT, ControlPlane
from testcluster.helm import helm

CHART = ROOT / "charts" / "dapt"
KINDS = frozenset({"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"})


@dataclass(frozen=True)
class Installed:
    """A release without its pod."""

    kubeconfig: Path
    """Of its service account."""
    flags: Sequence[str]
    """With which its Deployment starts `dapt operator`."""


def install_rights(
    plane: ControlPlane,
    namespace: str = "dapt-system",
    release: str = "dapt",
    values: Mapping[str, Any] | None = None,
) -> Installed:
    """Apply the roles of a release of the chart and nothing else of it.

    Args:
        plane: whose administrator applies them.
        namespace: of the release; made if it is not there.
        release: its name.
        values: of the chart by path, such as {"features.kueue": True}.

    Raises:
        HelmError: the chart refuses the values.
    """
    settings = [f"--set-json={name}={json.dumps(value)}" for name, value in (values or {}).items()]
    rendered = helm("template", release, CHART, "--namespace", namespace, *settings)
    manifests = [item for item in YAML(typ="safe", pure=False).load_all(rendered) if item]
    if plane.api.find("Namespace", namespace) is None:
        plane.make_namespace(namespace)
    for manifest in manifests:
        if manifest["kind"] in KINDS:
            plane.api.apply(manifest, namespace)
    pod = next(item for item in manifests if item["kind"] == "Deployment")["spec"]["template"]["spec"]
    kubeconfig = plane.kubeconfig_for(namespace, pod["serviceAccountName"])
    flags = [flag for flag in pod["containers"][0]["args"] if not flag.startswith("--port=")]
    return Installed(kubeconfig, flags)
