"""The command line as a user with the documented rights, before the real API server."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_operator.cli import main
from support.builders import adaptation
from testcluster.adaptations import ON_THE_CLUSTER
from testcluster.control_plane import ControlPlane
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

RIGHTS = [
    {
        "apiGroups": ["dapt.dev"],
        "resources": ["domainadaptations"],
        "verbs": ["get", "list", "watch", "create", "patch"],
    },
    {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
]
"""Those of docs/cluster-commands.md, in the namespace alone."""


def user_of(plane: ControlPlane, namespace: str) -> Path:
    """The kubeconfig of a user who has these rights."""
    subject = {"kind": "User", "name": f"{namespace}-user", "apiGroup": "rbac.authorization.k8s.io"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "user"}
    common = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "user"}}
    plane.api.create(common | {"kind": "Role", "rules": RIGHTS}, namespace)
    plane.api.create(common | {"kind": "RoleBinding", "roleRef": role, "subjects": [subject]}, namespace)
    return plane.kubeconfig_for_user(f"{namespace}-user")


def test_a_user_submits_changes_watches_and_reads(
    control_plane: ControlPlane,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(user_of(control_plane, namespace)))
    manifest = tmp_path / "m.yaml"

    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            main([arguments[0], "-n", namespace, *arguments[1:]])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    def write(**over: Any) -> None:
        document = adaptation(**(ON_THE_CLUSTER | over))
        del document["metadata"]["namespace"]
        with manifest.open("w") as file:
            YAML(typ="safe", pure=True).dump(document, file)

    def spec() -> dict[str, Any]:
        stored: dict[str, Any] = control_plane.api.get("DomainAdaptation", "clinical", namespace)["spec"]
        return stored

    # The rights need a moment to be known.
    eventually(
        lambda: call("status")[2].startswith("dapt: no adaptation in"), "the user may list adaptations"
    )
    write(limits={"gpuHours": 5})
    assert call("submit", str(manifest)) == (0, f"{namespace}/clinical: created\n", "")
    assert call("submit", str(manifest))[1] == f"{namespace}/clinical: unchanged\n"
    # A field that is gone from the manifest goes; what another command has set stays.
    assert call("suspend", "clinical")[0] == 0
    write()
    assert call("submit", str(manifest))[1].startswith(f"{namespace}/clinical: changed; it is suspended")
    assert (spec()["suspend"], "gpuHours" in spec().get("limits", {})) == (True, False)
    assert call("resume", "clinical")[0] == 0
    assert not spec()["suspend"]
    write(pretraining={"budget": {"steps": -1}})
    manifest_problem = call("submit", str(manifest))[2]
    assert "spec.pretraining.budget.steps" in manifest_problem
    assert call("logs", "clinical")[2].startswith(f"dapt: {namespace}/clinical: no run fits;")
    assert "no operator has reconciled it yet" in call("explain", "clinical")[1]
    finished = {
        "type": "Finished",
        "status": "True",
        "reason": "Published",
        "message": "model published to s3://out/model",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }
    # An end from before the last change of the spec is none.
    generation = control_plane.api.get("DomainAdaptation", "clinical", namespace)["metadata"]["generation"]
    status = {"status": {"phase": "Published", "observedGeneration": generation, "conditions": [finished]}}
    write_end = threading.Timer(
        0.5,
        control_plane.api.patch,
        args=("DomainAdaptation", "clinical", status, namespace),
        kwargs={"subresource": "status"},
    )
    write_end.start()
    try:
        assert call("watch", "clinical")[::2] == (0, "")
    finally:
        write_end.join()
    shown = json.loads(call("status", "clinical", "-o", "json")[1])
    assert shown["status"]["phase"] == "Published"
