"""Tests twenty valid manifests that cannot work: each stalls with its reason and recovers by its correction alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from dapt_operator.testing.objects import Stays
from support.builders import healthy, profile
from support.worlds import World

MARKED = {"annotations": {"dapt.dev/default": "true"}}
PULL = 'ErrImagePull: failed to pull image "registry.example/dapt-trainer:1.0.0": not found'
HOPELESS = "LocalQueue team doesn't exist"
SMALL = (
    "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu in flavor default, request >"
    " maximum capacity (2 > 1)"
)


@dataclass(frozen=True)
class Case:
    """One manifest that cannot be."""

    reason: str
    message: str
    spec: dict[str, Any] = field(default_factory=dict)
    offered: dict[str, Any] = field(default_factory=dict)
    pods: Stays | None = None
    """What its pods wait for; None: it never comes to pods."""
    before: Callable[[World], None] = lambda world: None
    correct: Callable[[World], object] = lambda world: None


def default_profiles(world: World) -> None:
    for name in ("a100", "h100"):
        manifest = profile(name)
        world.cluster.add_profile(manifest | {"metadata": manifest["metadata"] | MARKED})


def first_job(world: World) -> str:
    other = World()
    other.settle()
    return str(other.job["metadata"]["name"])


def squat(kind: str) -> Callable[[World], None]:
    return lambda world: world.cluster.take_name(
        world.key, kind, first_job(world), "it belongs to CronJob nightly"
    )


def move_away(kind: str) -> Callable[[World], None]:
    return lambda world: world.cluster.free_name(world.key, kind, first_job(world))


def tamper(world: World) -> None:
    world.cluster.tamper(world.key, first_job(world))


def delete_config_map(world: World) -> None:
    world.cluster.delete_object(world.key, "ConfigMap", first_job(world))


TAKEN = (
    "{} clinical-destination-{} exists already and is not this adaptation's: it belongs to CronJob nightly;"
    " remove it,"
)

CASES = {
    "no such profile": Case(
        "ProfileNotFound",
        "there is no AdaptationProfile other: create it, or name another in spec.profile",
        {"profile": "other"},
        correct=lambda world: world.cluster.add_profile(profile("other")),
    ),
    "no default profile": Case(
        "ProfileNotFound",
        "no AdaptationProfile is marked as default: name one in spec.profile",
        {"profile": None},
        correct=lambda world: world.edit(profile="bench"),
    ),
    "two default profiles": Case(
        "ProfileAmbiguous",
        "2 AdaptationProfiles are marked as default (a100, h100): leave one marked, or name one in spec.profile",
        {"profile": None},
        before=default_profiles,
        correct=lambda world: world.cluster.profiles.pop("a100") and None,
    ),
    "an invalid profile": Case(
        "InvalidSpec",
        "the profile is not valid: not supported yet: spec.tracking: curves are in the metrics and in the report;"
        " remove the field",
        offered={"tracking": {"tensorboard": {}}},
        correct=lambda world: world.offer(tracking=None),
    ),
    "a forbidden namespace": Case(
        "OutsideProfileLimits",
        "profile bench: namespace health may not use it (allowed: ml-*)",
        offered={"limits": {"namespaces": ["ml-*"]}},
        correct=lambda world: world.offer(limits={"namespaces": ["ml-*", "health"]}),
    ),
    "too many nodes": Case(
        "OutsideProfileLimits",
        "profile bench: spec.resources.nodes is 4; at most 2 are allowed",
        {"resources": {"nodes": 4}, "pretraining": {"globalBatchSize": 64}},
        {"limits": {"nodes": 2}},
        correct=lambda world: world.edit(resources={"nodes": 2}),
    ),
    "more accelerators than a node has": Case(
        "OutsideProfileLimits",
        "profile bench: spec.resources.gpusPerNode is 4; a node has 2",
        {"resources": {"gpusPerNode": 4}},
        correct=lambda world: world.edit(resources={"gpusPerNode": 2}),
    ),
    "more accelerators for stages than a node has": Case(
        "OutsideProfileLimits",
        "profile bench: spec.stageResources.baseline.gpus is 3; a node has 2; spec.stageResources.align.gpus is 8;"
        " a node has 2",
        {"stageResources": {"baseline": {"gpus": 3}, "evaluate": {"gpus": 2}, "align": {"gpus": 8}}},
        correct=lambda world: world.edit(stageResources=None),
    ),
    "too many GPU-hours": Case(
        "OutsideProfileLimits",
        "profile bench: spec.limits.gpuHours is 500; at most 100 are allowed",
        {"limits": {"gpuHours": 500}},
        {"limits": {"gpuHours": 100}},
        correct=lambda world: world.edit(limits={"gpuHours": 50}),
    ),
    "a forbidden source": Case(
        "OutsideProfileLimits",
        "profile bench: source s3://elsewhere/d.jsonl is not allowed (allowed: file://*)",
        {"corpus": {"domain": [{"source": "s3://elsewhere/d.jsonl"}]}},
        {"limits": {"sources": ["file://*"]}},
        correct=lambda world: world.edit(corpus={"domain": [{"source": "file:///text/d.jsonl"}]}),
    ),
    "a forbidden Secret": Case(
        "OutsideProfileLimits",
        "profile bench: Secret hub is not allowed (allowed: dapt-*)",
        {"credentials": [{"secretName": "hub", "use": "read"}]},
        correct=lambda world: world.edit(credentials=[{"secretName": "dapt-hub", "use": "read"}]),
    ),
    "a forbidden priority class": Case(
        "OutsideProfileLimits",
        "profile bench: spec.priorityClassName urgent is not allowed (allowed: research)",
        {"priorityClassName": "urgent"},
        {"limits": {"priorityClasses": ["research"]}},
        correct=lambda world: world.edit(priorityClassName="research"),
    ),
    "a batch that cannot be divided": Case(
        "InvalidSpec",
        "spec.pretraining.globalBatchSize is 9, which cannot be divided by 8 (1 node x 2 processes x micro-batch 4):"
        " write 8 or 16",
        {"pretraining": {"globalBatchSize": 9}},
        correct=lambda world: world.edit(pretraining={"globalBatchSize": 16}),
    ),
    "a batch of fine-tuning that cannot be divided": Case(
        "InvalidSpec",
        "spec.finetuning.globalBatchSize is 5, which cannot be divided by 2 (1 node x 2 processes): write 4 or 6",
        {"finetuning": {"globalBatchSize": 5}},
        correct=lambda world: world.edit(finetuning={"globalBatchSize": 6}),
    ),
    "a missing Secret": Case(
        "SecretNotFound",
        "destination cannot start: there is no Secret dapt-hub in this namespace: create it; the pod waits for it",
        {"credentials": [{"secretName": "dapt-hub", "use": "write"}]},
        pods=Stays(waiting='CreateContainerConfigError: secret "dapt-hub" not found'),
    ),
    "a missing claim": Case(
        "ClaimNotFound",
        "destination cannot start: there is no PersistentVolumeClaim corpora in this namespace: create it, or name"
        " another",
        {"output": {"destination": "pvc://corpora/model"}},
        pods=Stays(pending_reason='Unschedulable: persistentvolumeclaim "corpora" not found'),
    ),
    "an image that cannot be pulled": Case(
        "ImageNotPulled",
        f"destination cannot start: image registry.example/dapt-trainer:1.0.0 cannot be pulled ({PULL}): correct the"
        " profile's trainerImage, or give its service account access to the registry",
        pods=Stays(waiting=PULL),
        correct=lambda world: world.offer(trainerImage="registry.example/dapt-trainer:1.0.1"),
    ),
    "a quota that is too small": Case(
        "QuotaTooSmall",
        f"destination cannot be admitted by queue team: {SMALL}; ask for less in resources, name another queue, or have"
        " its quota raised",
        {"queue": "team"},
        pods=Stays(),
        before=lambda world: world.cluster.queues.update(team=SMALL),
        correct=lambda world: world.cluster.queues.update(team=""),
    ),
    "no such queue": Case(
        "QuotaTooSmall",
        f"destination cannot be admitted by queue team: {HOPELESS}; ask for less in resources, name another queue, or"
        " have its quota raised",
        {"queue": "team"},
        pods=Stays(),
        before=lambda world: world.cluster.queues.update(team=HOPELESS),
        correct=lambda world: world.edit(queue=None),
    ),
    "a foreign Job under our name": Case(
        "NameTaken",
        TAKEN.format("Job", "*") + " then this continues by itself",
        before=squat("Job"),
        correct=move_away("Job"),
    ),
    "a foreign ConfigMap under our name": Case(
        "NameTaken",
        TAKEN.format("ConfigMap", "*") + " then this continues by itself",
        before=squat("ConfigMap"),
        correct=move_away("ConfigMap"),
    ),
    "a changed copy": Case(
        "Tampered",
        "destination: ConfigMap clinical-destination-* was changed after it was written (its stage.json has SHA-256 *,"
        " the run was started with *): delete the ConfigMap, then the stage starts again",
        pods=Stays(pending_reason="Unschedulable: 0/3 nodes are available"),
        correct=delete_config_map,
    ),
}


def matches(said: str, pattern: str) -> bool:
    """Word for word; a `*` stands for a number that changes."""
    return (
        re.fullmatch("[0-9a-f]{8,12}".join(re.escape(part) for part in pattern.split("*")), said) is not None
    )


def exact(case: Case, said: str) -> bool:
    return matches(said, case.message) if "clinical-destination-" in case.message else said == case.message


@pytest.mark.parametrize("name", CASES)
def test_impossible_spec_stalls_with_its_reason_and_recovers_by_correction(name: str) -> None:
    case = CASES[name]
    world = World(case.spec, case.offered, graceful=True)
    case.before(world)
    world.settle()
    pods = case.pods
    if pods is not None:
        world.cluster.run_pods(world.key, lambda stage: pods)
        if case.reason == "Tampered":
            tamper(world)
        world.settle()
    status, reason, message = world.condition("Stalled")
    assert (status, reason) == ("True", case.reason)
    assert exact(case, message), message
    assert world.status["phase"] == "Stalled"
    assert world.condition("Reconciling")[0] == "False"
    assert len(message) > 40
    writes = world.cluster.writes
    world.cluster.advance(60)
    world.settle()
    assert world.cluster.writes == writes
    case.correct(world)
    world.live(healthy, lambda world: world.status["phase"] == "Published")
    for _ in range(10):
        if world.status["phase"] == "Published":
            break
        world.cluster.advance(15)
        world.live()
    assert world.status["phase"] == "Published"
    assert world.status["usage"]["restarts"] == 0


def test_there_are_at_least_twenty_and_every_reason_of_a_manifest_is_among_them() -> None:
    assert len(CASES) >= 20
    assert {case.reason for case in CASES.values()} == {
        "ProfileNotFound", "ProfileAmbiguous", "InvalidSpec", "OutsideProfileLimits", "SecretNotFound", "ClaimNotFound",
        "ImageNotPulled", "QuotaTooSmall", "NameTaken", "Tampered",
    }  # fmt: skip


def test_pods_that_no_node_can_take_are_work_in_progress() -> None:
    world = World()
    world.settle()
    reason = "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu"
    world.cluster.run_pods(world.key, lambda stage: Stays(pending_reason=reason))
    world.settle()
    assert world.condition("Reconciling") == (
        "True",
        "WaitingForNodes",
        "destination waits: Unschedulable: no nodes are available: Insufficient nvidia.com/gpu",
    )
    assert world.condition("Stalled")[0] == "False"
