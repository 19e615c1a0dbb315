"""Tests valid manifests that cannot work here: each stalls with its reason and continues by the correction alone.

All at once, in one namespace, under one operator: so one's trouble must not become another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from testcluster.adaptations import Adaptation, healthy, make_claim, make_profile
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.pod_life import Life, ScriptedPod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PLACE = "impossible"
STALLED_WITHIN_SECONDS = 60.0
CLAIM_SPEC = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}


@dataclass(frozen=True)
class Case:
    """One manifest, why it cannot work, and what mends it."""

    reason: str
    said: str
    """A part of the message: what the person has to find."""
    mend: Callable[[Adaptation], Any]
    over: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] | None = field(default_factory=dict)
    """Of a profile of its own; None: none is made."""
    hinder: Callable[[Adaptation], Any] | None = None
    """Done while the adaptation is suspended, so that names which hang on the uid are known."""


def edit(**spec: Any) -> Callable[[Adaptation], Any]:
    return lambda life: life.patch(**spec)


def edit_profile(**spec: Any) -> Callable[[Adaptation], Any]:
    return lambda life: life.plane.api.patch(
        "AdaptationProfile", life.resource["spec"]["profile"], {"spec": spec}
    )


def foreign_job(life: Adaptation) -> None:
    container = {"name": "c", "image": "registry.example/none"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    life.plane.api.create(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": life.first_run()},
         "spec": {"suspend": True, "template": template}},
        life.namespace,
    )  # fmt: skip


def foreign_config_map(life: Adaptation) -> None:
    life.plane.api.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": life.first_run()}, "data": {"a": "b"}},
        life.namespace,
    )


def remove(kind: str) -> Callable[[Adaptation], Any]:
    return lambda life: life.plane.api.delete(kind, life.first_run(), life.namespace)


def make_secret(name: str) -> Callable[[Adaptation], Any]:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "stringData": {"HF_TOKEN": "t"},
    }
    return lambda life: life.plane.api.create(secret, life.namespace)


def make_named_profile(life: Adaptation) -> None:
    from support import builders

    life.plane.api.create(builders.profile("comes-later"))


CASES: dict[str, Case] = {
    "no-profile": Case(
        "ProfileNotFound", "there is no AdaptationProfile comes-later", make_named_profile,
        {"profile": "comes-later"}, None,
    ),
    "no-default": Case(
        "ProfileNotFound", "no AdaptationProfile is marked as default", edit(profile="comes-later"),
        {}, None,
    ),
    "no-claim": Case(
        "ClaimNotFound", "not-there-yet", lambda life: make_claim(life.plane, PLACE, "not-there-yet"),
        profile={"storage": {"existingClaim": "not-there-yet"}},
    ),
    "no-source-claim": Case(
        "ClaimNotFound", "corpora", lambda life: make_claim(life.plane, PLACE, "corpora"),
        {"corpus": {"domain": [{"source": "pvc://corpora/d.jsonl"}]}},
    ),
    "no-secret": Case(
        "SecretNotFound", "dapt-later", make_secret("dapt-later"),
        {"credentials": [{"secretName": "dapt-later", "use": "read"}]},
    ),
    "secret-name": Case(
        "OutsideProfileLimits", "Secret other is not allowed (allowed: dapt-*)",
        lambda life: (edit_profile(limits={"secretNames": ["other"]})(life), make_secret("other")(life)),
        {"credentials": [{"secretName": "other", "use": "write"}]},
    ),
    "source": Case(
        "OutsideProfileLimits", "source s3://text/d.jsonl is not allowed",
        edit_profile(limits={"sources": ["hf://*", "s3://*"]}), profile={"limits": {"sources": ["hf://*"]}},
    ),
    "priority": Case(
        "OutsideProfileLimits", "spec.priorityClassName research is not allowed",
        edit(priorityClassName=None), {"priorityClassName": "research"},
    ),
    "namespace": Case(
        "OutsideProfileLimits", f"namespace {PLACE} may not use it (allowed: ml-*)",
        edit_profile(limits={"namespaces": ["ml-*", PLACE]}), profile={"limits": {"namespaces": ["ml-*"]}},
    ),
    "nodes": Case(
        "OutsideProfileLimits", "spec.resources.nodes is 2; at most 1 are allowed",
        edit_profile(limits={"nodes": 2}), profile={"limits": {"nodes": 1}},
    ),
    "gpus": Case(
        "OutsideProfileLimits", "spec.resources.gpusPerNode is 8; a node has 2",
        edit(resources={"gpusPerNode": 2}), {"resources": {"gpusPerNode": 8}, "pretraining": {"globalBatchSize": 32}},
    ),
    "hours": Case(
        "OutsideProfileLimits", "spec.limits.gpuHours is 500; at most 100 are allowed",
        edit(limits={"gpuHours": 90}), {"limits": {"gpuHours": 500}}, {"limits": {"gpuHours": 100}},
    ),
    "batch": Case(
        "InvalidSpec", "spec.pretraining.globalBatchSize is 9", edit(pretraining={"globalBatchSize": 8}),
        {"pretraining": {"globalBatchSize": 9}},
    ),
    "task": Case(
        "InvalidSpec", "no_such_task", edit(evaluation={"domain": {"tasks": [{"name": "arc_easy"}]}}),
        {"evaluation": {"domain": {"tasks": [{"name": "no_such_task"}]}}},
    ),
    "unsupported": Case(
        "NotSupported", "spec.model.source", edit(model={"source": "s3://models/base"}),
        {"model": {"source": "adaptation://other"}},
    ),
    "template": Case(
        "InvalidSpec", "command", edit_profile(podTemplate=None),
        profile={"podTemplate": {"spec": {"containers": [{"name": "trainer", "command": ["sh"]}]}}},
    ),
    "memory": Case(
        "NotEnoughMemory", "GiB", edit_profile(accelerator={"memoryGiB": 24}),
        profile={"accelerator": {"memoryGiB": 0.5}},
    ),
    "image": Case(
        "ImageNotPulled", "manifest unknown", lambda life: None,
    ),
    "foreign-job": Case(
        "NameTaken", "exists already and is not this adaptation's", remove("Job"), hinder=foreign_job
    ),
    "foreign-config": Case(
        "NameTaken", "exists already and is not this adaptation's", remove("ConfigMap"), hinder=foreign_config_map
    ),
}  # fmt: skip


class Kubelet:
    """Everything is healthy but the image of one adaptation, until it is mended."""

    def __init__(self) -> None:
        self.has_image = False

    def __call__(self, pod: ScriptedPod) -> Life:
        if pod.stage is not None and pod.stage.run.name == "image" and not self.has_image:
            return Life(waiting=("ErrImagePull", "registry.example/dapt-trainer:1.0.0: manifest unknown"))
        if pod.stage is not None and pod.stage.run.name == "tampered" and pod.stage.run.stage == "prepare":
            return Life()
        return healthy(pod)


@dataclass(frozen=True)
class World:
    """The adaptations by name, and the nodes on which their pods run."""

    lives: dict[str, Adaptation]
    tampered: Adaptation
    """A valid one whose ConfigMap somebody has replaced while prepare runs."""
    script: Kubelet
    kubelet: ScriptedKubelet


@pytest.fixture(scope="module")
def world(control_plane: ControlPlane) -> Iterator[World]:
    control_plane.make_namespace(PLACE)
    make_claim(control_plane, PLACE)
    script = Kubelet()
    with (
        ScriptedKubelet(control_plane, script) as kubelet,
        OperatorProcess(control_plane, [PLACE]) as operator,
    ):
        operator.wait_for("acting")
        lives = {}
        for name, case in CASES.items():
            wanted = case.over.get("profile", "")
            profile = wanted if case.profile is None else make_profile(control_plane, **case.profile)
            over = {"suspend": True} if case.hinder else {}
            lives[name] = life = Adaptation(
                control_plane,
                PLACE,
                profile,
                name,
                **over | {k: v for k, v in case.over.items() if k != "profile"},
            )
            if case.hinder is not None:
                case.hinder(life)
                life.patch(suspend=False)
        # The operator reads the copies of running stages every 45 seconds, so this one is replaced before all else.
        tampered = Adaptation(control_plane, PLACE, make_profile(control_plane), "tampered")
        replace_config_map(tampered)
        yield World(lives, tampered, script, kubelet)
        assert [line for line in operator.lines() if line.get("level") == "error"] == []
    control_plane.api.delete("Namespace", PLACE)
    control_plane.api.delete("AdaptationProfile", "comes-later")


def replace_config_map(life: Adaptation) -> None:
    """Put another source into the stage file of the running prepare."""
    life.wait_for_run("prepare")
    name, api = life.first_run("prepare"), life.plane.api
    copy = api.get("ConfigMap", name, PLACE)
    api.delete("ConfigMap", name, PLACE)
    text = copy["data"]["stage.json"].replace("s3://text/d.jsonl", "s3://elsewhere/d.jsonl")
    kept = ("name", "labels", "ownerReferences")
    changed = copy | {
        "metadata": {field: copy["metadata"][field] for field in kept},
        "data": copy["data"] | {"stage.json": text},
    }
    api.create(changed, PLACE)


def wait_until_stalled(life: Adaptation) -> None:
    life.wait(lambda one: one.condition("Stalled").get("status") == "True", "Stalled", STALLED_WITHIN_SECONDS)


@pytest.fixture(scope="module")
def corrected(world: World) -> dict[str, Adaptation]:
    """Every adaptation, corrected once all have stalled; from there they run to their ends side by side."""
    for life in world.lives.values():
        wait_until_stalled(life)
    for name, case in CASES.items():
        case.mend(world.lives[name])
    world.script.has_image = True
    world.kubelet.script = world.script
    return world.lives


@pytest.mark.parametrize("name", CASES)
def test_impossible_spec_stalls_with_its_reason(world: World, name: str) -> None:
    life, case = world.lives[name], CASES[name]
    wait_until_stalled(life)
    stalled = life.condition("Stalled")
    assert stalled["reason"] == case.reason
    assert case.said in stalled["message"]
    assert life.condition("Ready")["status"] == "False"
    assert life.status["phase"] == "Stalled"


@pytest.mark.parametrize("name", CASES)
def test_impossible_spec_recovers_by_its_correction_alone(
    corrected: dict[str, Adaptation], name: str
) -> None:
    corrected[name].wait_for_phase("Published", seconds=180)


def test_a_changed_copy_is_noticed_while_the_stage_runs(world: World, control_plane: ControlPlane) -> None:
    life, name = world.tampered, world.tampered.first_run("prepare")
    life.wait(
        lambda one: one.condition("Stalled").get("reason") == "Tampered", "Tampered", STALLED_WITHIN_SECONDS
    )
    assert name in life.condition("Stalled")["message"]
    control_plane.api.delete("ConfigMap", name, PLACE)
    life.wait(lambda one: one.condition("Stalled")["status"] == "False", "going on", STALLED_WITHIN_SECONDS)


def test_pods_that_no_node_can_take_are_work_in_progress_with_the_schedulers_reason(
    world: World, control_plane: ControlPlane
) -> None:
    profile = make_profile(control_plane, podTemplate={"spec": {"nodeSelector": {"gpu": "b300"}}})
    life = Adaptation(control_plane, PLACE, profile, "no-node")
    life.wait(
        lambda one: one.condition("Reconciling").get("reason") == "WaitingForNodes", "the scheduler's reason"
    )
    assert "didn't match Pod's node affinity/selector" in life.condition("Reconciling")["message"]
    assert life.condition("Stalled")["status"] == "False"
