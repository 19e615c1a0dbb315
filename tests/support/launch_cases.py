"""Runs and profiles that between them use everything a launcher can render; each has golden manifests."""

from __future__ import annotations

from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.launchers import LAUNCHERS
from dapt_operator.stage_run import Manifest, RunResources, StageRun
from support.launch_builders import owner, profile, stage_run


def platform() -> AdaptationProfileSpec:
    """A profile with everything that a platform team may write."""
    return profile(
        accelerator={"kind": "gpu", "perNode": 8, "memoryGiB": 80, "resource": "vendor.example/gpu"},
        storage={"existingClaim": "shared-models"},
        ports={"coordinator": 31000, "progress": 31001},
        startupTimeoutSeconds=600,
        terminationGracePeriodSeconds=300,
        podTemplate={
            "metadata": {"annotations": {"team": "ml"}, "labels": {"dapt.dev/stage": "forged", "zone": "a"}},
            "spec": {
                "nodeSelector": {"gpu": "h100"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "serviceAccountName": "training",
                "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}}],
                "securityContext": {"fsGroup": 2000},
                "containers": [
                    {
                        "name": "trainer",
                        "image": "forged",
                        "command": ["forged"],
                        "env": [
                            {"name": "NCCL_SOCKET_IFNAME", "value": "ib0"},
                            {"name": "PET_NNODES", "value": "forged"},
                            {"name": "OMP_NUM_THREADS", "value": "3"},
                        ],
                        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
                        "resources": {"limits": {"rdma/hca": "1"}},
                        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                        "livenessProbe": {"exec": {"command": ["true"]}},
                    }
                ],
            },
        },
    )


CASES: dict[str, tuple[StageRun, AdaptationProfileSpec]] = {
    "one-cpu-pod": (stage_run("done"), profile()),
    "one-cpu-pod-with-secrets-and-deadline": (
        stage_run("done", deadline_seconds=3600, secret_names=("dapt-s3", "dapt-hub")),
        profile(),
    ),
    "two-nodes-of-eight-gpus": (
        StageRun(
            identity=stage_run().identity.model_copy(
                update={"candidate": "a1-s4-i0.8", "try_number": 3, "fence": 9}
            ),
            kind="publish",
            config=stage_run().config,
            resources=RunResources(
                nodes=2, processes_per_node=8, accelerators_per_node=8, cpu="32", memory="512Gi"
            ),
            signs_checkpoints=True,
        ),
        platform(),
    ),
    "two-queued-nodes-with-claims": (
        stage_run(
            "done",
            nodes=2,
            queue="team-health",
            priority_class_name="research",
            claims=("models", "texts.of-the-hospital"),
            deadline_seconds=7200,
        ),
        profile(),
    ),
}
"""By name: golden manifests are `tests/golden/LAUNCHER-NAME.yaml`."""


def rendered(launcher: str, case: str) -> tuple[Manifest, ...]:
    """All objects of a case, those that all runs of an adaptation share first."""
    run, spec = CASES[case]
    chosen = LAUNCHERS[launcher]
    return chosen.shared(spec, owner(), run.resources.nodes) + chosen.render(run, spec, owner())
