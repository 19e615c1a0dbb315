"""Each way in which a pod can end badly, on a real control plane: many adaptations at once, each with its own trouble.

The second pod of the gang (or the only one) gets the trouble, once or always; everything else succeeds. What follows
is decided from pods that the real Job controller and garbage collector handle, not from what we believe of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_operator.testing.objects import Ends
from support import builders
from testcluster.adaptations import STAGES, Adaptation, healthy, make_claim, make_profile
from testcluster.control_plane import ControlPlane
from testcluster.kubelet_script import ScriptedKubelet
from testcluster.operator_process import OperatorProcess
from testcluster.pod_life import Answer, Life, ScriptedPod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LAST_LINES = "step 12\nTraceback (most recent call last):\nRuntimeError: the disk is gone\n"


def facts(pod: ScriptedPod, ended_by: str) -> Any:
    """What pretraining says when it is ended early: with the checkpoints so far."""
    assert pod.stage is not None
    done = builders.facts_for(pod.stage)
    return done.model_copy(update={"ended_by": ended_by})


@dataclass(frozen=True)
class Trouble:
    """Who gets which end."""

    end: Callable[[ScriptedPod], Ends]
    stage: str = "pretrain"
    index: int = 1
    always: bool = False
    log: str = ""
    over: dict[str, Any] = field(default_factory=dict)
    """Laid over the spec."""


def plainly(*arguments: Any, **named: Any) -> Callable[[ScriptedPod], Ends]:
    return lambda _: Ends(*arguments, **named)


TROUBLES: dict[str, Trouble] = {
    "crash": Trouble(plainly(1, message="ValueError: what", cause=Cause.CRASH), log=LAST_LINES),
    "network": Trouble(plainly(75, message="lost a peer", cause=Cause.INFRASTRUCTURE)),
    "hang": Trouble(plainly(75, message="rank 1 was silent for 60 s", cause=Cause.HANG)),
    "killed": Trouble(plainly(137, lose_message=True)),
    "memory": Trouble(plainly(70, message="CUDA out of memory", cause=Cause.OUT_OF_MEMORY)),
    "oom-killed": Trouble(plainly(oom_killed=True, lose_message=True)),
    "drained": Trouble(plainly(143, message="asked to stop", cause=Cause.STOPPED, disrupted=True)),
    "lost-words": Trouble(plainly(0, lose_message=True), stage="prepare", index=0),
    "bad-data": Trouble(
        plainly(64, message="text/d.jsonl:17: not JSON; correct the line", cause=Cause.BAD_INPUT),
        stage="prepare", index=0, always=True,
    ),
    "memory-twice": Trouble(
        plainly(70, message="CUDA out of memory", cause=Cause.OUT_OF_MEMORY),
        always=True, over={"pretraining": {"microBatchSize": 2}},
    ),
    "no-progress": Trouble(
        plainly(75, message="the disk is gone", cause=Cause.INFRASTRUCTURE), always=True, log=LAST_LINES
    ),
    "forgetting": Trouble(
        lambda pod: Ends(76, facts=facts(pod, "ForgettingLimit"), cause=Cause.FORGETTING_LIMIT), index=0
    ),
    "diverged": Trouble(lambda pod: Ends(77, facts=facts(pod, "Diverged"), cause=Cause.DIVERGED), index=0),
}  # fmt: skip

HOSTILE = {
    "too-long": "x" * 4096,
    "not-json": "{{{{ \x01\u202e",
    "another-run": '{"v": 1, "key": "0000", "kind": "prepare", "exit": 0}',
    "deep": "[" * 3000,
    "numbers": '{"v": 1e999, "exit": -99999999999999999999}',
}
"""Termination messages that no agent of ours writes."""


ODD_READINGS = {
    "endless": Answer(b"{", is_endless=True),
    "slow": Answer(b"{}", delay_seconds=30),
    "nested": Answer(b"[" * 60_000),
    "huge-step": Answer(b'{"run_key": "0", "stage": "pretrain", "step": 1e400}'),
    "another": Answer(b'{"run_key": "0000000000000000", "stage": "pretrain", "step": 39}'),
    "redirect": Answer(b"", status=302),
}
"""What answers at /progress that no trainer of ours says."""


def script(pod: ScriptedPod) -> Life:
    """By the adaptation's name."""
    if pod.stage is None:
        return Life()
    name, run = pod.stage.run.name, pod.stage.run
    if name in HOSTILE and run.stage == "prepare" and run.try_number == 1:
        return Life(then=Ends(0), run_seconds=0.2, words=HOSTILE[name])
    if name in ODD_READINGS and run.stage == "pretrain":
        return Life(
            then=Ends(facts=builders.facts_for(pod.stage)), run_seconds=8, progress=ODD_READINGS[name]
        )
    trouble = TROUBLES.get(name)
    if trouble is None or run.stage != trouble.stage or not (trouble.always or run.try_number == 1):
        return healthy(pod)
    if pod.index != trouble.index:
        return Life(log="waiting for a peer\n")  # its peers would wait for ever
    return Life(then=trouble.end(pod), run_seconds=0.3, log=trouble.log)


@pytest.fixture(scope="module")
def lives(control_plane: ControlPlane) -> Iterator[dict[str, Adaptation]]:
    """All of them at once, in one namespace, under one operator."""
    place = control_plane.make_namespace("failures")
    make_claim(control_plane, place)
    profile = make_profile(control_plane, terminationGracePeriodSeconds=2)
    with (
        ScriptedKubelet(control_plane, script) as kubelet,
        OperatorProcess(control_plane, [place]) as operator,
    ):
        operator.wait_for("acting")
        yield {
            name: Adaptation(control_plane, place, profile, name, **trouble.over)
            for name, trouble in TROUBLES.items()
        }
        assert [line for line in operator.lines() if line.get("level") == "error"] == []
        assert kubelet.errors == []
    control_plane.api.delete("Namespace", place)


def tries(life: Adaptation) -> dict[str, int]:
    return {stage["name"]: stage["try"] for stage in life.status["stages"]}


@pytest.mark.parametrize("name", ["crash", "network", "hang", "killed", "memory", "oom-killed"])
def test_fault_of_one_pod_costs_one_run_of_the_whole_gang(lives: dict[str, Adaptation], name: str) -> None:
    life = lives[name]
    life.wait_for_phase("Published", seconds=180)
    assert tries(life) == dict.fromkeys(STAGES, 1) | {"pretrain": 2}
    assert life.status["usage"]["restarts"] == 1
    assert [job["spec"]["completions"] for job in life.jobs("pretrain")] == [2, 2]


def test_disruption_costs_a_run_and_no_retry(lives: dict[str, Adaptation]) -> None:
    life = lives["drained"]
    life.wait_for_phase("Published", seconds=180)
    assert tries(life) == dict.fromkeys(STAGES, 1) | {"pretrain": 2}
    (record,) = (one for one in life.status["ledger"]["runs"] if one["stage"] == "pretrain")
    assert record.get("failures", {}) == {}


def test_success_with_a_lost_termination_message_costs_a_short_run(lives: dict[str, Adaptation]) -> None:
    life = lives["lost-words"]
    life.wait_for_phase("Published", seconds=180)
    assert tries(life) == dict.fromkeys(STAGES, 1) | {"prepare": 2}


@pytest.mark.parametrize("name", ["memory", "oom-killed"])
def test_out_of_memory_halves_the_micro_batch(lives: dict[str, Adaptation], name: str) -> None:
    life = lives[name]
    life.wait_for_phase("Published", seconds=180)
    configs = [stage_config(life, job["metadata"]["name"]) for job in life.jobs("pretrain")]
    assert [config["micro_batch_size"] for config in configs] == [2, 1]
    assert len({config["global_batch_size"] for config in configs}) == 1


def stage_config(life: Adaptation, name: str) -> dict[str, Any]:
    import json

    found = life.plane.api.get("ConfigMap", name, life.namespace)
    config: dict[str, Any] = json.loads(found["data"]["stage.json"])["config"]
    return config


@pytest.mark.parametrize(
    ("name", "reason", "said", "number"),
    [
        ("bad-data", "BadInput", "text/d.jsonl:17: not JSON; correct the line", 1),
        ("memory-twice", "OutOfMemory", "CUDA out of memory", 2),
        ("no-progress", "RetriesExhausted", "the disk is gone", 3),
    ],
)
def test_failure_that_no_further_run_can_fix_needs_user_action(
    lives: dict[str, Adaptation], name: str, reason: str, said: str, number: int
) -> None:
    life = lives[name]
    life.wait_for_phase("Stalled", seconds=180)
    assert life.condition("Stalled")["reason"] == reason
    assert said in life.condition("Stalled")["message"]
    assert life.condition("Reconciling")["status"] == "False"
    assert life.status["stages"][-1]["try"] == number
    life.wait(lambda one: not one.running(TROUBLES[name].stage), "no pod left")


@pytest.mark.parametrize("name", ["forgetting", "diverged"])
def test_a_run_that_was_ended_by_its_numbers_is_judged_by_its_checkpoints(
    lives: dict[str, Adaptation], name: str
) -> None:
    life = lives[name]
    life.wait_for_phase("Published", seconds=180)
    assert tries(life) == dict.fromkeys(STAGES, 1)
    assert (
        life.status["attempts"][0]["endedBy"]
        == {"forgetting": "ForgettingLimit", "diverged": "Diverged"}[name]
    )


def test_the_last_lines_of_a_failing_rank_are_kept(lives: dict[str, Adaptation]) -> None:
    life = lives["no-progress"]
    life.wait_for_phase("Stalled", seconds=180)
    assert life.status["stages"][-1]["lastLogLines"] == LAST_LINES.splitlines()


@pytest.mark.usefixtures("lives")
def test_hostile_termination_message_costs_only_its_own_adaptation_a_run(control_plane: ControlPlane) -> None:
    place, profile = "failures", make_profile(control_plane, terminationGracePeriodSeconds=2)
    made = {name: Adaptation(control_plane, place, profile, name) for name in HOSTILE}
    for life in made.values():
        life.wait_for_phase("Published", seconds=180)
        assert tries(life)["prepare"] == 2


@pytest.mark.usefixtures("lives")
def test_malformed_progress_readings_harm_no_adaptation(control_plane: ControlPlane) -> None:
    place, profile = "failures", make_profile(control_plane, terminationGracePeriodSeconds=2)
    made = [Adaptation(control_plane, place, profile, name) for name in ODD_READINGS]
    for life in made:
        life.wait_for_phase("Published", seconds=180)
        assert tries(life) == dict.fromkeys(STAGES, 1)
        assert life.status.get("progress", {}).get("step") != 39
