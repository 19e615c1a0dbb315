"""Adaptations, profiles and work volumes for the control plane, and a handle to follow one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dapt_contract.pod.failure import Cause
from dapt_contract.pod.progress import Progress
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import CheckpointFacts
from dapt_operator.api.names import object_name
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.run_record import StageKey
from dapt_operator.plan.stages.destination import destination_stage
from dapt_operator.testing.objects import Ends
from support import builders
from testcluster.control_plane import ControlPlane
from testcluster.pod_life import Life, PodScript, ScriptedPod
from testcluster.waiting import eventually

STAGES = ("destination", "prepare", "baseline", "pretrain", "evaluate", "finetune", "verify", "publish")
"""Of a whole life with fine-tuning, in their order."""
ON_THE_CLUSTER: dict[str, Any] = {
    "model": {"source": "hf://org/base@0e9e39f"},
    "corpus": {"domain": [{"source": "s3://text/d.jsonl"}], "general": [{"source": "s3://text/g.jsonl"}]},
    "evaluation": {
        "domain": {"tasks": [{"name": "codes", "source": "s3://eval/codes.jsonl"}]},
        "general": {"tasks": [{"name": "general", "source": "s3://eval/general.jsonl"}]},
    },
    "finetuning": {"data": [{"source": "s3://text/instructions.jsonl"}]},
    "output": {"destination": "s3://out/model"},
    "pretraining": {"microBatchSize": 2},
    "resources": {"nodes": 2, "gpusPerNode": 2},
    "cleanup": {"finishedRuns": "Retain"},
}
"""What differs from the manifest of the tests in memory: nothing lies on this machine, pretraining has 2 nodes, and the
Jobs of ended runs stay, since tests look at them."""
ROLLBACK: dict[str, Any] = {
    "gates": {"onBreach": "Rollback"},
    "selection": {"interpolate": [0.8, 1.0], "averageLast": 2},
}
"""A breach starts another attempt, and each attempt that has ended is blended."""
_numbers = itertools.count(1)


def make_profile(plane: ControlPlane, *, default: bool = False, **over: Any) -> str:
    """A profile of its own name, whose work volume is the namespace's claim `work`."""
    manifest = builders.profile(f"profile-{next(_numbers)}", **over)
    if default:
        manifest["metadata"]["annotations"] = {"dapt.dev/default": "true"}
    return str(plane.api.create(manifest)["metadata"]["name"])


def make_claim(plane: ControlPlane, namespace: str, name: str = "work") -> None:
    """A bound claim; nothing lies behind it."""
    volume, size = f"{namespace}-{name}", {"storage": "1Ti"}
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    plane.api.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": common
            | {
                "capacity": size,
                "hostPath": {"path": "/nowhere"},
                "claimRef": {"namespace": namespace, "name": name},
            },
        }
    )
    plane.api.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": common | {"volumeName": volume, "resources": {"requests": size}},
        }
    )
    eventually(
        lambda: plane.api.get("PersistentVolumeClaim", name, namespace)["status"].get("phase") == "Bound",
        f"claim {name} bound",
    )


def token_kubeconfig(plane: ControlPlane, namespace: str, url: str) -> Path:
    """The kubeconfig of an administrator with a token: a proxy passes that on, and no client certificate."""
    name = f"{namespace}-administrator"
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "administrator"}}
    plane.api.create(account, namespace)
    plane.api.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "cluster-admin",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "administrator", "namespace": namespace}],
        }
    )
    return plane.kubeconfig_for(namespace, "administrator", url=url)


def healthy(pod: ScriptedPod) -> Life:
    """A run that takes a moment and succeeds."""
    return Life() if pod.stage is None else Life(then=ends_well(pod.stage), run_seconds=0.2)


def ends_well(stage: StageFile) -> Ends:
    """What a healthy run of a stage says."""
    return Ends(facts=builders.facts_for(stage))


def forgets_first(pod: ScriptedPod) -> Life:
    """The first attempt is stopped at its second checkpoint; all else is healthy."""
    if pod.stage is None or pod.stage.kind != "pretrain" or pod.stage.run.attempt > 1:
        return healthy(pod)
    rows = [builders.checkpoint(10, 2.9, 0.05), builders.checkpoint(20, 2.8, 0.9)]
    said = "general perplexity is +90.0% over the base model's"
    facts = builders.pretrain_facts(rows, "ForgettingLimit", message=said)
    return Life(then=Ends(76, cause=Cause.FORGETTING_LIMIT, message=said, facts=facts), run_seconds=0.2)


def trains(rows: Sequence[CheckpointFacts], evaluation: PodScript) -> PodScript:
    """Pretraining goes on and tells of `rows`, as many as there are by then; evaluations do as they are told."""

    def script(pod: ScriptedPod) -> Life:
        if pod.stage is None or pod.stage.kind not in ("pretrain", "evaluate"):
            return healthy(pod)
        if pod.stage.kind == "evaluate":
            life = evaluation(pod)
            assert isinstance(life, Life)
            return life
        key = pod.stage.run.key

        def reading() -> Progress:
            step = rows[-1].step if rows else 0
            return Progress(run_key=key, stage="pretrain", step=step, checkpoints=tuple(rows))

        return Life(progress=reading if pod.index == 0 else None)

    return script


def stays_in(*stages: str) -> PodScript:
    """All succeed but the pods of these stages, which run on."""
    return lambda pod: Life() if pod.stage is not None and pod.stage.run.stage in stages else healthy(pod)


class Adaptation:
    """One DomainAdaptation on the control plane."""

    def __init__(
        self, plane: ControlPlane, namespace: str, profile: str, name: str = "clinical", **over: Any
    ) -> None:
        """Creates it; `over` is laid over its spec. An empty profile leaves the field out."""
        manifest = builders.adaptation(name, **builders.merged(ON_THE_CLUSTER, over))
        manifest["spec"] = builders.merged(manifest["spec"], {"profile": profile or None})
        manifest["metadata"]["namespace"] = namespace
        self.plane, self.namespace, self.name = plane, namespace, name
        self.uid = str(plane.api.create(manifest)["metadata"]["uid"])

    # --- what is there ---

    def first_run(self, stage: str = "") -> str:
        """Name of the objects of a stage's first run, before it is made too; by default of the first stage."""
        first = destination_stage(DomainAdaptationSpec.model_validate(self.resource["spec"])).stage_key
        key = StageKey(stage) if stage else first
        identity = RunIdentity(
            namespace=self.namespace,
            name=self.name,
            uid=self.uid,
            stage=key.stage,
            attempt=key.attempt,
            candidate=key.candidate,
            try_number=1,
            fence=1,
        )
        return object_name(self.name, key.stage, identity.key)

    @property
    def resource(self) -> dict[str, Any]:
        """As stored."""
        return self.plane.api.get("DomainAdaptation", self.name, self.namespace)

    @property
    def status(self) -> dict[str, Any]:
        """Empty before the first reconcile."""
        status: dict[str, Any] = self.resource.get("status") or {}
        return status

    @property
    def phase(self) -> str:
        """As people see it; empty before the first reconcile."""
        return str(self.status.get("phase", ""))

    def condition(self, type_: str) -> dict[str, Any]:
        """A condition, empty when it is not there."""
        return next((one for one in self.status.get("conditions", ()) if one["type"] == type_), {})

    def children(self, kind: str) -> list[dict[str, Any]]:
        """Objects of ours of one kind."""
        return self.plane.api.list(kind, self.namespace, labels=f"dapt.dev/uid={self.uid}")

    def jobs(self, stage: str = "") -> list[dict[str, Any]]:
        """Its Jobs, of one stage if it is named, in the order of their creation by fence."""
        found = [
            job
            for job in self.children("Job")
            if not stage or job["metadata"]["labels"]["dapt.dev/stage"] == stage
        ]
        return sorted(found, key=lambda job: int(job["metadata"]["labels"]["dapt.dev/fence"]))

    def runs(self) -> list[tuple[str, int]]:
        """Stage and try of every run in the status."""
        return [(stage["name"], stage["try"]) for stage in self.status.get("stages", ())]

    def running(self, stage: str) -> list[dict[str, Any]]:
        """Pods of a stage that run and were not asked to stop."""
        return [
            pod
            for pod in self.children("Pod")
            if pod["metadata"]["labels"]["dapt.dev/stage"] == stage
            and pod["status"].get("phase") == "Running"
            and "deletionTimestamp" not in pod["metadata"]
        ]

    # --- what a test does ---

    def patch(self, **spec: Any) -> None:
        """Change the spec as `kubectl patch --type merge` does."""
        self.plane.api.patch("DomainAdaptation", self.name, {"spec": spec}, self.namespace)

    def wait(self, look: Callable[[Adaptation], Any], what: str, seconds: float = 60.0) -> Any:
        """Until `look` holds; says where it stood otherwise."""
        try:
            return eventually(lambda: look(self), what, seconds=seconds)
        except AssertionError as error:
            told = {one["type"]: one.get("message") for one in self.status.get("conditions", ())}
            raise AssertionError(f"{error}; phase {self.phase}, stages {self.runs()}, {told}") from None

    def wait_for_phase(self, phase: str, seconds: float = 60.0) -> None:
        """Until it stands there."""
        self.wait(lambda one: one.phase == phase, f"phase {phase}", seconds)

    def wait_for_run(self, stage: str, pods: int = 1, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Until so many pods of a stage run, and the status knows; the pods."""

        def look(one: Adaptation) -> list[dict[str, Any]]:
            known = [row for row in one.status.get("stages", ()) if row["name"] == stage]
            if not known or known[-1]["state"] != "Running":
                return []
            found = one.running(stage)
            return found if len(found) == pods else []

        found: list[dict[str, Any]] = self.wait(look, f"{pods} running pods of {stage}", seconds)
        return found
