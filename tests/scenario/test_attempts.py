"""Tests rollback over whole adaptations: what a new attempt starts from and with, and what it leaves unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.pretrain import CheckpointFacts, MixturePhase, PretrainConfig
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, healthy, measure, pretrain_facts
from support.worlds import World

PLAIN: dict[str, Any] = {
    "gates": {"onBreach": "Rollback"},
    "selection": {"interpolate": [1.0], "averageLast": 1},
    "evaluation": {"when": "end"},
}
"""Rollback without blends and without evaluations beside pretraining: what is asserted here."""
LIMIT = "general perplexity is +70.0% over the base model's, past the hard stop"


def limit(rows: Sequence[CheckpointFacts], message: str = LIMIT) -> Ends:
    facts = pretrain_facts(list(rows), "ForgettingLimit", message=message)
    return Ends(76, facts=facts, message=message, cause=Cause.FORGETTING_LIMIT)


def diverged(rows: Sequence[CheckpointFacts], message: str = "the loss is nan") -> Ends:
    facts = pretrain_facts(list(rows), "Diverged", message=message)
    return Ends(77, facts=facts, message=message, cause=Cause.DIVERGED)


def by_attempt(ends: Mapping[int, Ends]) -> Script:
    """Pretraining of an attempt ends like this; all else is healthy."""

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain" and stage.run.attempt in ends:
            return ends[stage.run.attempt]
        return healthy(stage)

    return script


def trainings(world: World) -> list[PretrainConfig]:
    return [run.config for run in world.runs if isinstance(run.config, PretrainConfig)]


def test_the_forgetting_limit_starts_an_attempt_from_the_newest_checkpoint_that_passes() -> None:
    world = World(PLAIN)
    rows = [checkpoint(10, 2.9, 0.05), checkpoint(20, 2.8, 0.1), checkpoint(30, 2.7, 0.7)]
    world.live(by_attempt({1: limit(rows)}))
    first, second = trainings(world)
    assert second.model.adapters == ("stages/pretrain-a1/try-1/checkpoint-20",)
    assert second.earlier_phases == (MixturePhase(steps=20, replay_fraction=0.13),)
    assert (first.optimizer.learning_rate, second.optimizer.learning_rate) == (1.0e-4, 5.0e-5)
    assert (first.replay_fraction, second.replay_fraction) == (0.13, 0.26)
    assert (first.total_steps, first.checkpoint_steps) == (40, (10, 20, 30, 40))
    assert (second.total_steps, second.checkpoint_steps) == (20, (10, 20))
    assert world.status["selected"]["id"] == "a2-s20"
    chosen = world.config("evaluate")
    assert isinstance(chosen, EvaluateConfig)
    assert chosen.model.adapters == (
        "stages/pretrain-a1/try-1/checkpoint-20", "stages/pretrain-a2/try-1/checkpoint-20",
    )  # fmt: skip
    assert world.status["phase"] == "Published"


def test_status_lists_the_attempts_and_how_each_ended() -> None:
    world = World(PLAIN)
    world.live(by_attempt({1: limit([checkpoint(10, 2.9, 0.05), checkpoint(20, 2.7, 0.7)])}))
    reason = f"attempt 1 was stopped at the forgetting limit: {LIMIT}"
    assert world.status["attempts"] == [
        {
            "number": 1,
            "learningRate": 1.0e-4,
            "replayFraction": 0.13,
            "totalSteps": 40,
            "endedBy": "ForgettingLimit",
            "reason": reason,
        },
        {
            "number": 2,
            "learningRate": 5.0e-5,
            "replayFraction": 0.26,
            "start": "a1-s10",
            "totalSteps": 30,
            "endedBy": "Completed",
        },
    ]
    assert world.status["attempt"] == 2
    told = [event.message for event in world.cluster.events(world.key) if event.reason == "RolledBack"]
    assert told == [f"{reason}; attempt 2 starts from a1-s10 with learning rate 5e-05 and replay 0.26"]


def test_the_decision_is_written_down_before_it_is_carried_out() -> None:
    world = World(PLAIN)
    world.live_until("pretrain")
    world.end("pretrain", limit([checkpoint(10, 2.9, 0.7)]))
    world.reconcile()
    assert world.running is None
    (attempt,) = world.status["ledger"]["attempts"]
    assert (attempt["number"], attempt["learningRate"], attempt.get("start")) == (2, 5.0e-5, None)
    assert world.condition("Reconciling")[:2] == ("True", "RollingBack")
    assert world.plans[-1].requeue_after == 0.1
    world.edit(gates={"maxGeneralPerplexityIncrease": 1.0, "onBreach": "Block"})
    world.reconcile()
    assert world.running == "pretrain"
    assert trainings(world)[-1].optimizer.learning_rate == 5.0e-5


def test_divergence_before_any_checkpoint_restarts_from_the_base_model() -> None:
    world = World(PLAIN)
    world.live(by_attempt({1: diverged([])}))
    second = trainings(world)[1]
    assert (second.model.weights, second.model.adapters, second.earlier_phases) == ("model", (), ())
    assert second.total_steps == 40
    assert world.status["attempts"][0]["reason"] == "attempt 1 diverged: the loss is nan"
    assert world.status["selected"]["id"] == "a2-s40"


def test_no_passing_candidate_at_the_end_starts_another_attempt() -> None:
    world = World(PLAIN)
    rows = [checkpoint(step, 2.9, rise) for step, rise in ((10, 0.1), (20, 0.2), (30, 0.21), (40, 0.22))]
    rows[0] = checkpoint(10, 3.1, 0.1)  # within the limit and no gain
    world.live(by_attempt({1: Ends(facts=pretrain_facts(rows))}))
    assert world.status["attempts"][0]["reason"] == (
        "attempt 1 ended and no candidate passes the gates: domain perplexity of a1-s10 on half B is +10.5% against"
        " the base model's, and a decrease of at least 0.0% is required"
    )
    assert world.status["attempts"][1]["start"] == "a1-s10"
    assert trainings(world)[1].total_steps == 30
    assert world.status["phase"] == "Published"


def test_a_candidate_that_a_task_gate_has_failed_is_no_start() -> None:
    world = World(PLAIN)
    rows = [
        checkpoint(10, 2.9, 0.05),
        checkpoint(20, 2.8, 0.05),
        checkpoint(30, 2.7, 0.05),
        checkpoint(40, 2.6, 0.05),
    ]

    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain" and stage.run.attempt == 1:
            return Ends(facts=pretrain_facts(rows))
        if isinstance(stage.config, EvaluateConfig) and stage.run.attempt == 1:
            return Ends(
                facts=EvaluateFacts(candidate=stage.config.candidate, measure=measure(general_drop=0.2))
            )
        return healthy(stage)

    world.live(script)
    assert world.status["attempts"][1]["start"] == "a1-s10"  # 40, 30 and 20 were judged


def test_rollbacks_used_up_block_with_all_attempts_judged() -> None:
    bad = [checkpoint(10, 2.9, 0.7)]
    world = World(PLAIN | {"gates": {"onBreach": "Rollback", "rollback": {"maxRollbacks": 2}}})
    world.live(by_attempt({number: limit(bad) for number in (1, 2, 3)}))
    assert [config.optimizer.learning_rate for config in trainings(world)] == [1.0e-4, 5.0e-5, 2.5e-5]
    assert [config.replay_fraction for config in trainings(world)] == [0.13, 0.26, 0.5]
    assert world.condition("Stalled")[1] == "GatesBreached"
    assert "general perplexity of a1-s10" in world.condition("Stalled")[2]
    assert "a lower learningRate (it was 2.5e-05)" in world.condition("Stalled")[2]
    assert [one["id"] for one in world.status["candidates"]] == ["a1-s10", "a2-s10", "a3-s10"]
    assert world.reconcile().is_empty
    world.edit(gates={"maxGeneralPerplexityIncrease": 0.8})
    world.live()
    assert len(trainings(world)) == 3
    assert world.status["selected"]["id"] == "a1-s10"


def test_a_further_rollback_may_be_granted_after_the_last() -> None:
    world = World(PLAIN | {"gates": {"onBreach": "Rollback", "rollback": {"maxRollbacks": 1}}})
    script = by_attempt({number: limit([checkpoint(10, 2.9, 0.7)]) for number in (1, 2)})
    world.live(script)
    assert world.status["phase"] == "Stalled"
    world.edit(gates={"rollback": {"maxRollbacks": 2}})
    world.live(script)
    assert len(trainings(world)) == 3
    assert world.status["phase"] == "Published"


@pytest.mark.parametrize("on_breach", ["Block", "Warn"])
def test_without_rollback_there_is_one_attempt(on_breach: str) -> None:
    world = World(PLAIN | {"gates": {"onBreach": on_breach}})
    world.live(by_attempt({1: diverged([checkpoint(10, 2.9, 0.3)])}))
    assert len(trainings(world)) == 1
    assert world.status["phase"] == ("Stalled" if on_breach == "Block" else "Published")


def test_replay_stays_zero_where_the_general_text_is_only_measured() -> None:
    world = World(PLAIN | {"corpus": {"generalUse": "measure"}})
    world.live(by_attempt({1: limit([checkpoint(10, 2.9, 0.7)])}))
    assert [config.replay_fraction for config in trainings(world)] == [0.0, 0.0]


def test_replay_is_never_raised_above_a_half_nor_lowered_to_it() -> None:
    world = World(PLAIN | {"corpus": {"replayFraction": 0.4}})
    world.live(by_attempt({1: limit([checkpoint(10, 2.9, 0.7)])}))
    assert trainings(world)[1].replay_fraction == 0.5
    other = World(PLAIN | {"corpus": {"replayFraction": 0.6}})
    other.live(by_attempt({1: limit([checkpoint(10, 2.9, 0.7)])}))
    assert trainings(other)[1].replay_fraction == 0.6


def test_phases_add_up_over_several_attempts() -> None:
    spec = PLAIN | {"pretraining": {"method": {"lora": None, "full": {}}, "distribution": {"zeroStage": 0}}}
    world = World(spec, {"accelerator": {"memoryGiB": 80}})
    good, bad = checkpoint(10, 2.9, 0.05), checkpoint(20, 2.8, 0.7)
    world.live(by_attempt({1: limit([good, bad]), 2: limit([good, bad])}))
    third = trainings(world)[2]
    assert third.model.weights == "stages/pretrain-a2/try-1/checkpoint-10"
    assert third.model.adapters == ()
    assert third.earlier_phases == (
        MixturePhase(steps=10, replay_fraction=0.13), MixturePhase(steps=10, replay_fraction=0.26),
    )  # fmt: skip
    assert (third.total_steps, third.replay_fraction) == (20, 0.5)
    publish = world.config("publish")
    assert publish.card.training_tokens == (10 + 10 + 20) * 8 * 128  # type: ignore[attr-defined]
    assert publish.card.learning_rate == 5.0e-6  # type: ignore[attr-defined]


def test_gpu_hours_and_goodput_count_every_attempt() -> None:
    world = World(PLAIN)
    slow = pretrain_facts([checkpoint(10, 2.9, 0.7)], "ForgettingLimit", step_seconds_median=1.5)
    ends = Ends(76, facts=slow, message="past it", cause=Cause.FORGETTING_LIMIT)
    fast = pretrain_facts([checkpoint(20, 2.6, 0.05)], step_seconds_median=1.5)
    world.live(by_attempt({1: ends, 2: Ends(facts=fast)}))
    seconds = {
        (r["stage"], r["attempt"]): r["acceleratorSeconds"]
        for r in world.status["ledger"]["runs"]
        if "attempt" in r
    }
    assert (seconds[("pretrain", 1)], seconds[("pretrain", 2)]) == (60.0, 60.0)
    assert world.status["usage"]["gpuHours"] == round(sum(seconds.values()) / 3600, 4)
    assert world.status["usage"]["goodput"] == (10 + 20) * 1.5 / 60


def test_suspended_second_attempt_resumes_unchanged() -> None:
    world = World(PLAIN)
    script = by_attempt({1: limit([checkpoint(10, 2.9, 0.05), checkpoint(20, 2.8, 0.7)])})
    world.live(script, lambda w: w.running == "pretrain" and w.runs[-1].run.attempt == 2)
    world.edit(suspend=True)
    world.settle()
    world.cluster.advance(60)
    world.settle()
    world.edit(suspend=False)
    world.live(script)
    assert [(run.run.attempt, run.run.try_number) for run in world.runs if run.kind == "pretrain"] == [
        (1, 1), (2, 1), (2, 2),
    ]  # fmt: skip
    assert trainings(world)[1].model == trainings(world)[2].model
    assert world.status["phase"] == "Published"
