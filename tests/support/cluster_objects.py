"""Objects as an API server gives them, around the manifests that the launcher renders."""

from __future__ import annotations

import itertools
from typing import Any

from dapt_operator.cluster.port import Key
from dapt_operator.launchers import indexed_job
from dapt_operator.stage_run import Owner, StageRun, plain
from support.launch_builders import UID, owner, profile, resource, stage_run

KEY = Key("health", "clinical-llama")
_versions = itertools.count(1000)


def stored(body: Any, *, uid: str, version: int | None = None, **metadata: Any) -> dict[str, Any]:
    """With what the server adds."""
    found: dict[str, Any] = plain(body)
    found["metadata"] |= {
        "uid": uid,
        "resourceVersion": str(next(_versions) if version is None else version),
        "creationTimestamp": "2026-01-31T12:00:00Z",
        "managedFields": [{"manager": "somebody", "fieldsV1": {"f:spec": {}}}],
    } | metadata
    return found


def adaptation(version: int | None = None, *, uid: str = UID, **spec: Any) -> dict[str, Any]:
    return stored(resource(**spec), uid=uid, version=version, generation=1)


def rendered(run: StageRun | None = None, of: Owner | None = None) -> list[dict[str, Any]]:
    """ConfigMap and Job of a run."""
    of = of or owner()
    return [plain(item) for item in indexed_job.render(run or stage_run(nodes=2, of=of), profile(), of)]


def job(
    version: int | None = None,
    *,
    uid: str = "job-1",
    run: StageRun | None = None,
    of: Owner | None = None,
    **status: Any,
) -> dict[str, Any]:
    return stored(rendered(run, of)[-1], uid=uid, version=version) | {"status": status}


def pod(
    of_job: dict[str, Any],
    index: int = 0,
    version: int | None = None,
    *,
    uid: str | None = None,
    phase: str = "Running",
    holder_kind: str = "Job",
    ended: dict[str, Any] | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    name = of_job["metadata"]["name"]
    template = of_job["spec"]["template"]
    labels = template["metadata"]["labels"] | {"batch.kubernetes.io/job-name": name}
    state: dict[str, Any] = {"running": {"startedAt": "2026-01-31T12:00:05Z"}}
    if ended is not None:
        state = {"terminated": {"containerID": "containerd://" + 64 * "0"} | ended}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-{index}-abcde",
            "namespace": of_job["metadata"]["namespace"],
            "labels": labels,
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": holder_kind,
                    "name": name,
                    "uid": of_job["metadata"]["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": template["spec"] | {"nodeName": "node-1"},
        "status": {
            "phase": phase,
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True"},
            ],
            "containerStatuses": [
                {"name": "trainer", "image": "i", "imageID": 64 * "0", "state": state, "ready": True}
            ],
        }
        | ({"podIP": address} if address else {}),
    }
    return stored(body, uid=uid or f"pod-{name}-{index}", version=version)
