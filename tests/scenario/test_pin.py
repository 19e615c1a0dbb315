"""A candidate chosen by hand."""

from __future__ import annotations

from typing import Any

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.publish import PublishConfig
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, healthy, measure, pretrain_facts
from support.worlds import World

ROWS = [checkpoint(10, 2.9, 0.05), checkpoint(20, 2.8, 0.05), checkpoint(30, 2.7, 0.4)]


def spec(pin: str, **over: Any) -> dict[str, Any]:
    return {
        "selection": {"pin": pin, "interpolate": [1.0], "averageLast": 1},
        "gates": {"onBreach": "Block"},
        "evaluation": {"when": "end"},
    } | over


def told(increase: float = 0.05, ends: Ends | None = None) -> Script:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind == "pretrain":
            return ends or Ends(facts=pretrain_facts(ROWS))
        if isinstance(stage.config, EvaluateConfig):
            return Ends(
                facts=EvaluateFacts(candidate=stage.config.candidate, measure=measure(increase=increase))
            )
        if stage.kind == "verify":
            return Ends(facts=VerifyFacts(final=measure(increase=increase), digests=()))
        return healthy(stage)

    return script


def test_the_pinned_candidate_is_evaluated_and_taken() -> None:
    world = World(spec("a1-s10"))
    world.live(told())
    assert [run.run.candidate for run in world.runs if run.kind == "evaluate"] == ["a1-s10"]
    assert world.status["selected"] == {
        "id": "a1-s10", "reason": "chosen by hand (selection.pin)", "digest": "00000000000a",
    }  # fmt: skip
    assert world.condition("GatesPassed")[:2] == ("True", "AllGatesPassed")
    assert world.status["phase"] == "Published"


def test_pinned_candidate_that_breaches_a_gate_is_published_with_warnings() -> None:
    world = World(spec("a1-s30"))
    world.live(told(increase=0.4))
    breach = (
        "general perplexity of a1-s30 on half B is +40.0% against the base model's, over the limit of +15.0%"
    )
    assert (
        world.status["selected"]["reason"] == f"chosen by hand (selection.pin); it breaches a gate: {breach}"
    )
    assert world.condition("GatesPassed")[:2] == ("False", "PassedWithWarnings")
    assert world.status["phase"] == "Published"
    publish = world.config("publish")
    assert isinstance(publish, PublishConfig)
    assert breach in publish.card.warnings
    assert publish.card.selection_reason.startswith("chosen by hand")


def test_a_pinned_candidate_that_passed_and_fails_at_the_end_is_held_back() -> None:
    world = World(spec("a1-s10"))

    def script(stage: StageFile) -> Ends | Stays:
        return told(increase=0.4)(stage) if stage.kind == "verify" else told()(stage)

    world.live(script)
    assert world.condition("Stalled")[1] == "VerifyFailed"


def test_an_unknown_pin_lists_what_there_is_and_never_rolls_back() -> None:
    world = World(spec("a1-s99", gates={"onBreach": "Rollback"}))
    world.live(told())
    assert world.condition("Stalled") == (
        "True",
        "PinUnknown",
        "selection.pin is a1-s99, and the candidates are a1-s10, a1-s20, a1-s30: name one of them, or remove the field",
    )
    assert world.stages.count("pretrain") == 1
    world.edit(selection={"pin": "a1-s20"})
    world.live(told())
    assert world.status["selected"]["id"] == "a1-s20"


def test_a_pin_after_a_block_decides_from_what_is_there() -> None:
    world = World(spec("a1-s30", selection={"interpolate": [1.0], "averageLast": 1}))
    bad = [checkpoint(10, 2.9, 0.3), checkpoint(20, 2.8, 0.3)]
    world.live(told(ends=Ends(facts=pretrain_facts(bad))))
    assert world.status["phase"] == "Stalled"
    world.edit(selection={"pin": "a1-s10"})
    world.live(told(increase=0.3))
    assert world.status["selected"]["id"] == "a1-s10"
    assert world.stages.count("pretrain") == 1
    assert world.status["phase"] == "Published"


def test_a_pinned_checkpoint_of_a_stopped_attempt_needs_no_other_attempt() -> None:
    facts = pretrain_facts(ROWS, "ForgettingLimit", message="past it")
    ends = Ends(76, facts=facts, message="past it", cause=Cause.FORGETTING_LIMIT)
    world = World(spec("a1-s20", gates={"onBreach": "Rollback"}))
    world.live(told(ends=ends))
    assert world.stages.count("pretrain") == 1
    assert world.status["selected"]["id"] == "a1-s20"
