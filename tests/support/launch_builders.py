"""Builders for single runs: a StageRun of the fake stage, its profile and owner, and the manifests that start it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dapt_contract.measure import Measure, Perplexity, SidePerplexity
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stages.common import ModelReference
from dapt_contract.stages.publish import CardFacts, PublishConfig
from dapt_operator.api.v1alpha1.profile import AdaptationProfileSpec
from dapt_operator.launchers import indexed_job
from dapt_operator.stage_run import Manifest, Owner, RunResources, StageRun, plain

FAKE_POD = Path(__file__).parents[1] / "trainer" / "pod" / "fake" / "pod.py"
UID = "0b7c8a52-9d1e-4b6e-8c4f-2f1f6a3d9e10"


def owner(name: str = "clinical-llama", uid: str = UID) -> Owner:
    return Owner(namespace="health", name=name, uid=uid)


def profile(**changes: Any) -> AdaptationProfileSpec:
    values: dict[str, Any] = {
        "trainerImage": "registry.example/dapt-trainer:1.4.0",
        "accelerator": {"kind": "cpu", "perNode": 1, "memoryGiB": 8},
        "storage": {
            "claimTemplate": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        },
        "terminationGracePeriodSeconds": 5,
    }
    return AdaptationProfileSpec.model_validate(values | changes)


def _measure() -> Measure:
    text = Perplexity(nll_nats=10.0, tokens=5, bytes=20)
    side = SidePerplexity(a=text, b=text)
    return Measure(digest="0" * 64, domain=side, general=side)


def publish_config(script: str = "done") -> PublishConfig:
    card = CardFacts(
        adaptation="clinical-llama",
        base_model="file://base",
        base_revision="0",
        method="full",
        learning_rate=1e-5,
        replay_fraction=0.05,
        training_tokens=1000,
        domain_sources=("file://d",),
        general_sources=("file://g",),
        candidate="a1-s4",
        selection_reason="largest gain",
        fine_tuned=False,
        base=_measure(),
        chosen=_measure(),
    )
    return PublishConfig(
        model=ModelReference(weights="model"), destination=f"file://{script}", run_digest="r", card=card
    )


def stage_run(
    script: str = "done",
    *,
    nodes: int = 1,
    processes: int = 1,
    accelerators: int = 0,
    try_number: int = 1,
    fence: int = 1,
    of: Owner | None = None,
    **changes: Any,
) -> StageRun:
    of = of or owner()
    identity = RunIdentity(
        namespace=of.namespace,
        name=of.name,
        uid=of.uid,
        stage="publish",
        attempt=1,
        try_number=try_number,
        fence=fence,
    )
    resources = RunResources(
        nodes=nodes, processes_per_node=processes, accelerators_per_node=accelerators, cpu=None, memory=None
    )
    return StageRun(
        identity=identity, kind="publish", config=publish_config(script), resources=resources, **changes
    )


def fake_manifests(
    run: StageRun, of: Owner | None = None, **profile_changes: Any
) -> tuple[dict[str, Any], ...]:
    """What the launcher renders, with the agent of the tests as command."""
    rendered = [plain(item) for item in indexed_job.render(run, profile(**profile_changes), of or owner())]
    container = rendered[-1]["spec"]["template"]["spec"]["containers"][0]
    # Not as a path of its own: below /work it would be taken for one on the work volume.
    container["command"] = [
        "python",
        "-c",
        f"import runpy; runpy.run_path({str(FAKE_POD)!r}, run_name='__main__')",
    ]
    return tuple(rendered)


ON_THE_CLUSTER: dict[str, Any] = {
    "model": {"source": "hf://org/base"},
    "corpus": {"domain": [{"source": "s3://text/d.jsonl"}], "general": [{"source": "s3://text/g.jsonl"}]},
    "output": {"destination": "s3://out/model"},
}
"""What a resource has in place of files of this machine, which the API server refuses."""


def resource(name: str = "clinical-llama", **spec: Any) -> Manifest:
    return {
        "apiVersion": "dapt.dev/v1alpha1",
        "kind": "DomainAdaptation",
        "metadata": {"name": name, "namespace": "health"},
        "spec": {
            "model": {"source": "file://base"},
            "corpus": {"domain": [{"source": "file://d.jsonl"}], "general": [{"source": "file://g.jsonl"}]},
            "output": {"destination": "file://out"},
            "resources": {"nodes": 1},
        }
        | spec,
    }
