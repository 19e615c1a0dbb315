"""What a real Kueue writes about a Job that it does not admit, situation by situation.

`python -m testcluster.kueue_sentences` from tests/cluster prints tests/launchers/kueue_sentences.yaml, against which
the operator's reading of these sentences is tested; the cluster tests compare the file with what Kueue says now.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from testcluster.control_plane import ControlPlane
from testcluster.kueue import API_VERSION, kueue
from testcluster.waiting import eventually

FILE = Path(__file__).parents[2] / "launchers" / "kueue_sentences.yaml"
NEVER = "2000-01-01T00:00:00Z"
HEADER = """\
# What Kueue writes into a Workload's condition QuotaReserved, as recorded from the real one:
# `python -m testcluster.kueue_sentences` in tests/cluster. `verdict` is ours: wait = time alone may help,
# never = nothing but a change by someone, granted = quota is reserved.
"""


@dataclass(frozen=True)
class Situation:
    """One queue, what else is in it, and the Job that waits there."""

    name: str
    """Also the namespace's and the ClusterQueue's."""
    verdict: str
    queue: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the ClusterQueue's spec beside one flavor with 4 CPUs."""
    flavors: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"default-flavor": {}})
    """Specs of the flavors, by name; each gives `quota`."""
    quotas: tuple[str, ...] = ("4",)
    """CPUs of each flavor."""
    before: tuple[str, ...] = ()
    """CPUs of each pod of Jobs that are admitted before."""
    cpus: str = "1"
    """CPUs of each pod of the Job in question; it has two pods."""
    resources: Mapping[str, str] = field(default_factory=dict)
    """What else each of its pods asks for."""
    pod: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its pod's spec."""
    local_queue: Mapping[str, Any] | None = field(default_factory=dict)
    """Fields of the LocalQueue's spec; None: there is no LocalQueue."""
    cluster_queue: bool = True
    """Whether the ClusterQueue exists."""
    objects: tuple[Mapping[str, Any], ...] = ()
    """Further objects, in the namespace if they have one."""
    ready_checks: tuple[str, ...] = ()
    """AdmissionChecks that are made active, as their controller would."""
    after: Callable[[ControlPlane, str, str], None] | None = None
    """Done to the Workload (namespace, name) once Kueue has spoken."""


def _deactivate(plane: ControlPlane, namespace: str, name: str) -> None:
    plane.api.patch("Workload", name, {"spec": {"active": False}}, namespace, api_version=API_VERSION)


_TAINT = {"key": "reserved", "value": "others", "effect": "NoSchedule"}
_LIMIT_RANGE = {
    "apiVersion": "v1",
    "kind": "LimitRange",
    "metadata": {"name": "small-pods"},
    "spec": {"limits": [{"type": "Pod", "max": {"cpu": "500m"}}]},
}


def _check(name: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "AdmissionCheck",
        "metadata": {"name": name},
        "spec": {"controllerName": "example.com/nobody"},
    }


_CPU_AND_MEMORY = {
    "coveredResources": ["cpu", "memory"],
    "flavors": [
        {
            "name": "default-flavor",
            "resources": [
                {"name": "cpu", "nominalQuota": "4"},
                {"name": "memory", "nominalQuota": "8Gi"},
            ],
        }
    ],
}
_TWO: dict[str, dict[str, str]] = {"small-flavor": {}, "large-flavor": {}}
SITUATIONS: tuple[Situation, ...] = (
    Situation("others-hold-the-quota", "wait", before=("1.5",), cpus="1"),
    Situation("larger-than-the-queue", "never", cpus="8"),
    Situation("larger-than-the-queue-while-others-hold-it", "never", before=("1.5",), cpus="8"),
    Situation("two-flavors-both-held", "wait", flavors=_TWO, quotas=("2", "4"), before=("1", "2"), cpus="1"),
    Situation(
        "too-small-flavor-and-held-flavor", "wait", flavors=_TWO, quotas=("1", "4"), before=("2",), cpus="1"
    ),
    Situation("two-flavors-both-too-small", "never", flavors=_TWO, quotas=("1", "4"), cpus="8"),
    Situation(
        "cpus-held-and-memory-too-small",
        "never",
        queue={"resourceGroups": [_CPU_AND_MEMORY]},
        before=("2",),
        resources={"memory": "8Gi"},
    ),
    Situation("gpus-are-not-in-the-queue", "never", resources={"nvidia.com/gpu": "8"}),
    Situation("flavor-is-tainted", "never", flavors={"tainted-flavor": {"nodeTaints": [_TAINT]}}),
    Situation(
        "tainted-flavor-and-held-flavor",
        "wait",
        flavors={"tainted-flavor": {"nodeTaints": [_TAINT]}, "default-flavor": {}},
        quotas=("4", "4"),
        before=("2",),
    ),
    Situation(
        "flavor-has-other-nodes",
        "never",
        flavors={"h100-flavor": {"nodeLabels": {"accelerator": "h100"}}},
        pod={"nodeSelector": {"accelerator": "a100"}},
    ),
    Situation("no-local-queue", "never", local_queue=None),
    Situation("no-cluster-queue", "never", cluster_queue=False),
    Situation("local-queue-is-held", "wait", local_queue={"stopPolicy": "Hold"}),
    Situation("cluster-queue-is-held", "wait", queue={"stopPolicy": "Hold"}),
    Situation("no-flavor", "wait", flavors={}, quotas=("4",)),
    Situation(
        "namespace-not-served", "never", queue={"namespaceSelector": {"matchLabels": {"team": "other"}}}
    ),
    Situation("limit-range", "never", objects=(_LIMIT_RANGE,)),
    Situation("deactivated", "never", cpus="8", after=_deactivate),
    Situation(
        "admission-check-is-inactive",
        "wait",
        queue={"admissionChecks": ["inactive-check"]},
        objects=(_check("inactive-check"),),
    ),
    Situation(
        "admission-check-is-pending",
        "wait",
        queue={"admissionChecks": ["slow-check"]},
        objects=(_check("slow-check"),),
        ready_checks=("slow-check",),
    ),
)


def told(plane: ControlPlane, situation: Situation) -> dict[str, Any]:
    """What Kueue says in this situation: the condition QuotaReserved, and whether the Workload is active."""
    namespace = plane.make_namespace(situation.name)
    _make_queue(plane, situation)
    for number, cpus in enumerate(situation.before):
        name = f"before-{number}"
        plane.api.create(_job(name, namespace, cpus))
        eventually(
            functools.partial(_is_admitted, plane, namespace, name), f"{situation.name}: {name} admitted"
        )
    plane.api.create(_job("asks", namespace, situation.cpus, situation.resources, situation.pod))
    workload = (
        eventually(lambda: _spoken(plane, namespace, "asks"), f"{situation.name}: a word of Kueue") or {}
    )
    if situation.after is not None:
        situation.after(plane, namespace, workload["metadata"]["name"])
        eventually(lambda: not (_workload(plane, namespace, "asks") or {})["spec"].get("active", True))
    workload = _workload(plane, namespace, "asks") or {}
    reserved = next(item for item in workload["status"]["conditions"] if item["type"] == "QuotaReserved")
    return {
        "name": situation.name,
        "verdict": situation.verdict,
        "active": workload["spec"].get("active", True),
        "status": reserved["status"],
        "reason": reserved["reason"],
        "message": reserved["message"],
    }


def _make_queue(plane: ControlPlane, situation: Situation) -> None:
    for manifest in situation.objects:
        plane.api.apply(manifest, situation.name)
    for name in situation.ready_checks:
        active = {
            "type": "Active",
            "status": "True",
            "reason": "Active",
            "message": "",
            "lastTransitionTime": NEVER,
        }
        status = {"status": {"conditions": [active]}}
        plane.api.patch("AdmissionCheck", name, status, subresource="status", api_version=API_VERSION)
    for name, spec in situation.flavors.items():
        flavor = {
            "apiVersion": API_VERSION,
            "kind": "ResourceFlavor",
            "metadata": {"name": name},
            "spec": spec,
        }
        plane.api.apply(flavor)
    names = list(situation.flavors) or ["no-such-flavor"]
    flavors = [
        {"name": name, "resources": [{"name": "cpu", "nominalQuota": quota}]}
        for name, quota in zip(names, situation.quotas, strict=True)
    ]
    if situation.cluster_queue:
        spec = {
            "namespaceSelector": {},
            "resourceGroups": [{"coveredResources": ["cpu"], "flavors": flavors}],
            **situation.queue,
        }
        plane.api.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "ClusterQueue",
                "metadata": {"name": situation.name},
                "spec": spec,
            }
        )
    if situation.local_queue is not None:
        plane.api.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "LocalQueue",
                "metadata": {"name": "team", "namespace": situation.name},
                "spec": {"clusterQueue": situation.name, **situation.local_queue},
            }
        )


def _job(
    name: str,
    namespace: str,
    cpus: str,
    resources: Mapping[str, str] | None = None,
    pod: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    asked = {"cpu": cpus, **(resources or {})}
    container = {
        "name": "main",
        "image": "registry.example/none",
        "resources": {"requests": asked, "limits": asked},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kueue.x-k8s.io/queue-name": "team"}},
        "spec": {
            "suspend": True,
            "completions": 2,
            "parallelism": 2,
            "completionMode": "Indexed",
            "template": {"spec": {"restartPolicy": "Never", "containers": [container], **(pod or {})}},
        },
    }


def _workload(plane: ControlPlane, namespace: str, job: str) -> dict[str, Any] | None:
    uid = plane.api.get("Job", job, namespace)["metadata"]["uid"]
    found = plane.api.list(
        "Workload", namespace, labels=f"kueue.x-k8s.io/job-uid={uid}", api_version=API_VERSION
    )
    return found[0] if found else None


def _is_admitted(plane: ControlPlane, namespace: str, job: str) -> bool:
    return not plane.api.get("Job", job, namespace)["spec"]["suspend"]


def _spoken(plane: ControlPlane, namespace: str, job: str) -> dict[str, Any] | None:
    workload = _workload(plane, namespace, job)
    conditions = (workload or {}).get("status", {}).get("conditions") or []
    return workload if any(item["type"] == "QuotaReserved" for item in conditions) else None


def main() -> int:
    """Record them all."""
    with ControlPlane() as plane, kueue(plane):
        told_all = [told(plane, situation) for situation in SITUATIONS]
    sys.stdout.write(HEADER)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # untyped in the library
    yaml.width = 1000
    yaml.dump(told_all, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
