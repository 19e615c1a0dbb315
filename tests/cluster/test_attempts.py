"""Tests attempts and evaluations in parallel with pretraining on a real control plane: several Jobs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from dapt_contract.stage_file import StageFile
from dapt_contract.stages.pretrain import CheckpointFacts, PretrainConfig
from dapt_operator.testing.objects import Ends
from support.builders import checkpoint, pretrain_facts
from testcluster.adaptations import (
    ROLLBACK,
    Adaptation,
    ends_well,
    forgets_first,
    healthy,
    make_claim,
    make_profile,
    trains,
)
from testcluster.control_plane import ControlPlane
from testcluster.fake_node import FakeNode
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.pod_life import Life, ScriptedPod
from testcluster.waiting import eventually

pytestmark = pytest.mark.cluster

BESIDE: dict[str, Any] = {"evaluation": {"when": "everyCheckpoint"}}
ROWS = (checkpoint(10, 2.9), checkpoint(20, 2.8), checkpoint(30, 2.7), checkpoint(40, 2.6))
GPU = "nvidia.com/gpu"
KINDS = ("Job", "Pod", "ConfigMap", "Secret", "Service")


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str) -> Iterator[str]:
    """The test's namespace, with a work volume and an operator."""
    make_claim(control_plane, namespace)
    with OperatorProcess(control_plane, [namespace]):
        yield namespace


def runs_on(_: ScriptedPod) -> Life:
    return Life()


def evaluated(adaptation: Adaptation) -> list[str]:
    """Candidates of all evaluations so far, in the order of their creation."""
    return [job["metadata"]["labels"]["dapt.dev/candidate"] for job in adaptation.jobs("evaluate")]


def alive(adaptation: Adaptation, stage: str) -> list[str]:
    """Candidates whose pods of a stage run."""
    return sorted(
        pod["metadata"]["labels"].get("dapt.dev/candidate", "") for pod in adaptation.running(stage)
    )


def is_of(stage: str, candidate: str | None = None) -> Any:
    """Picks pods for `ScriptedKubelet.change`."""
    return lambda pod: (
        pod.stage is not None
        and pod.stage.run.stage == stage
        and candidate in (None, pod.stage.run.candidate)
    )


def end_all(kubelet: ScriptedKubelet, stage: str, candidate: str | None = None) -> None:
    """The living pods of a stage end well."""
    picked = is_of(stage, candidate)
    for one in [pod for pod in kubelet.pods if picked(pod)]:
        assert one.stage is not None
        kubelet.change(ends_well(one.stage), partial(lambda uid, pod: pod.uid == uid, one.uid))


def end_pretraining(kubelet: ScriptedKubelet, rows: Sequence[CheckpointFacts]) -> None:
    """The living pretraining ends with these checkpoints."""
    assert kubelet.change(Ends(facts=pretrain_facts(rows)), is_of("pretrain"))


def test_adaptation_with_a_rollback_is_published(
    control_plane: ControlPlane, place: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = forgets_first
    adaptation = Adaptation(control_plane, place, make_profile(control_plane), **ROLLBACK)
    adaptation.wait_for_phase("Published", seconds=90)
    told = [(row["name"], row["attempt"], row["state"]) for row in adaptation.status["stages"]]
    assert told == [
        ("destination", 1, "Succeeded"), ("prepare", 1, "Succeeded"), ("baseline", 1, "Succeeded"),
        ("pretrain", 1, "Failed"),
        ("pretrain", 2, "Succeeded"), ("blend", 1, "Succeeded"), ("blend", 2, "Succeeded"),
        ("evaluate", 2, "Succeeded"), ("finetune", 2, "Succeeded"), ("verify", 2, "Succeeded"),
        ("publish", 2, "Succeeded"),
    ]  # fmt: skip
    first, second = adaptation.status["attempts"]
    assert (first["endedBy"], second["endedBy"]) == ("ForgettingLimit", "Completed")
    assert "general perplexity is +90.0% over the base model's" in first["reason"]
    assert second["start"] == "a1-s10"
    assert second["learningRate"] == first["learningRate"] / 2
    config = config_of(adaptation, adaptation.jobs("pretrain")[1])
    assert isinstance(config, PretrainConfig)
    assert config.model.adapters == ("stages/pretrain-a1/try-1/checkpoint-10",)
    assert [(phase.steps, phase.replay_fraction) for phase in config.earlier_phases] == [
        (10, first["replayFraction"])
    ]
    assert {one["id"] for one in adaptation.status["candidates"]} >= {"a1-avg2", "a2-avg2-i0.8", "a2-s30"}
    assert adaptation.status["selected"]["id"] == "a2-s30"
    reasons = [event["reason"] for event in control_plane.api.list("Event", place)]
    assert reasons.count("RolledBack") == 1
    assert adaptation.status["attempt"] == 2


def config_of(adaptation: Adaptation, job: dict[str, Any]) -> Any:
    """What the run of a Job was told."""
    found = adaptation.plane.api.get("ConfigMap", job["metadata"]["name"], adaptation.namespace)
    return StageFile.model_validate_json(found["data"]["stage.json"]).config


def test_two_evaluations_run_in_parallel_with_pretraining_and_deletion_leaves_nothing(
    control_plane: ControlPlane, place: str, kubelet: ScriptedKubelet
) -> None:
    rows = [*ROWS[:1]]
    kubelet.script = trains(rows, runs_on)
    profile = make_profile(control_plane, evaluation={"concurrency": 2})
    adaptation = Adaptation(control_plane, place, profile, **BESIDE)
    adaptation.wait(lambda one: alive(one, "evaluate") == ["a1-s10"], "an evaluation of the first checkpoint")
    assert len(adaptation.running("pretrain")) == 2
    rows += ROWS[1:3]
    adaptation.wait(lambda one: alive(one, "evaluate") == ["a1-s10", "a1-s20"], "a second evaluation")
    assert evaluated(adaptation) == ["a1-s10", "a1-s20"]
    assert adaptation.phase == "Pretraining"
    end_all(kubelet, "evaluate", "a1-s10")
    adaptation.wait(lambda one: alive(one, "evaluate") == ["a1-s20", "a1-s30"], "the third in its place")
    assert evaluated(adaptation) == ["a1-s10", "a1-s20", "a1-s30"]
    assert len(adaptation.running("pretrain")) == 2
    assert len(adaptation.jobs("pretrain")) == 1

    control_plane.api.delete("DomainAdaptation", adaptation.name, place)
    eventually(lambda: not any(map(adaptation.children, KINDS)), "the end of all children", seconds=60)


def test_selection_waits_for_evaluations_started_during_pretraining(
    control_plane: ControlPlane, place: str, kubelet: ScriptedKubelet
) -> None:
    kubelet.script = trains(ROWS[:2], runs_on)
    profile = make_profile(control_plane, evaluation={"concurrency": 2})
    adaptation = Adaptation(control_plane, place, profile, **BESIDE)
    adaptation.wait(lambda one: alive(one, "evaluate") == ["a1-s10", "a1-s20"], "two evaluations")
    end_pretraining(kubelet, ROWS)
    adaptation.wait_for_phase("Evaluating")
    assert alive(adaptation, "evaluate") == ["a1-s10", "a1-s20"]
    assert "selected" not in adaptation.status
    kubelet.script = healthy
    adaptation.wait_for_phase("Published")
    assert evaluated(adaptation) == ["a1-s10", "a1-s20", "a1-s30", "a1-s40"]
    assert len(adaptation.jobs("pretrain")) == 1
    assert adaptation.status["selected"]["id"] in evaluated(adaptation)


def test_an_evaluation_without_a_place_never_holds_up_pretraining(
    control_plane: ControlPlane, place: str
) -> None:
    room = FakeNode(resources={GPU: 4})  # as many as pretraining takes
    with ScriptedKubelet(control_plane, trains(ROWS[:1], healthy), [room]) as kubelet:
        profile = make_profile(control_plane, pendingTimeoutSeconds=5)
        adaptation = Adaptation(control_plane, place, profile, **BESIDE)
        adaptation.wait(lambda one: evaluated(one) == ["a1-s10"], "the evaluation's Job")
        adaptation.wait(
            lambda one: any(is_unschedulable(pod) for pod in one.children("Pod")), "a pod without a place"
        )
        assert len(adaptation.running("pretrain")) == 2
        assert adaptation.condition("Stalled")["status"] == "False"
        assert adaptation.phase == "Pretraining"
        end_pretraining(kubelet, ROWS)
        adaptation.wait_for_phase("Published")
        assert evaluated(adaptation) == ["a1-s10", "a1-s20", "a1-s30", "a1-s40"]
        assert len(adaptation.jobs("pretrain")) == 1
    assert kubelet.errors == []


def is_unschedulable(pod: dict[str, Any]) -> bool:
    """Whether the scheduler found no node for it."""
    return any(
        one["type"] == "PodScheduled" and one.get("reason") == "Unschedulable"
        for one in pod["status"].get("conditions") or ()
    )
