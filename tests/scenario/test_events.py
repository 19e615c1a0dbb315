"""Tests events: they come from a fixed set and report each change once."""

from __future__ import annotations

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_operator.api.v1alpha1 import conditions as words
from dapt_operator.api.v1alpha1.events import EVENTS
from dapt_operator.testing.objects import Ends, Stays
from support.builders import healthy
from support.worlds import World, failing, once


def told(world: World) -> list[tuple[str, str, str]]:
    return [(event.type, event.reason, event.message) for event in world.cluster.events(world.key)]


def test_events_record_each_stage_change_and_the_publication_once() -> None:
    world = World({"finetuning": None})
    world.live()
    assert told(world) == [
        ("Normal", "StageStarted", "destination was started (run 1)"),
        ("Normal", "StageSucceeded", "destination succeeded; prepare was started (run 1)"),
        ("Normal", "StageSucceeded", "prepare succeeded; baseline was started (run 1)"),
        # The chosen replay is stored before the run exists, hence two.
        ("Normal", "StageSucceeded", "baseline succeeded"),
        ("Normal", "StageStarted", "pretrain was started (run 1)"),
        ("Normal", "StageSucceeded", "pretrain succeeded; evaluate of a1-s40 was started (run 1)"),
        ("Normal", "StageSucceeded", "evaluate of a1-s40 succeeded; verify of a1-s40 was started (run 1)"),
        (
            "Normal",
            "CandidateSelected",
            "a1-s40: largest gain of 4 candidates within the perplexity limit on half A; it passes the gates on half B",
        ),
        ("Normal", "StageSucceeded", "verify of a1-s40 succeeded; publish of a1-s40 was started (run 1)"),
        ("Normal", "Published", "model published to file:///out/model"),
    ]


def test_failure_event_is_recorded_although_the_next_run_starts_at_once() -> None:
    world = World()
    world.live_until(
        "baseline", failing("prepare", once(Ends(75, message="it broke", cause=Cause.INFRASTRUCTURE)))
    )
    assert told(world)[1:5] == [
        ("Normal", "StageSucceeded", "destination succeeded; prepare was started (run 1)"),
        ("Warning", "StageFailed", "prepare failed (Infrastructure): it broke"),
        ("Normal", "StageStarted", "prepare was started (run 2)"),
        ("Normal", "StageSucceeded", "prepare succeeded; baseline was started (run 1)"),
    ]


def test_stall_event_is_recorded_again_only_when_its_message_changes() -> None:
    world = World({"profile": "other"})
    world.settle()
    world.cluster.advance(600)
    world.settle()
    world.edit(profile="another")
    world.settle()
    said = "there is no AdaptationProfile {}: create it, or name another in spec.profile"
    assert told(world) == [
        ("Warning", "ProfileNotFound", said.format("other")),
        ("Warning", "ProfileNotFound", said.format("another")),
    ]


def test_a_suspension_is_no_failure() -> None:
    world = World(graceful=True)
    world.live_until("prepare")
    world.cluster.run_pods(world.key, lambda stage: Stays())
    world.edit(suspend=True)
    world.settle()
    world.cluster.run_pods(world.key, healthy)
    world.settle()
    assert told(world)[1:] == [
        ("Normal", "StageSucceeded", "destination succeeded; prepare was started (run 1)")
    ]


def test_budget_exhausted_event_is_recorded_once() -> None:
    def dear(stage: StageFile) -> Ends | Stays:
        return healthy(stage)

    world = World({"limits": {"gpuHours": 1.0}})
    world.live_until("pretrain")
    world.cluster.run_pods(world.key, dear, seconds=2000)
    world.live()
    assert [one for one in told(world) if one[1] == "BudgetExhausted"] == [
        (
            "Warning",
            "BudgetExhausted",
            "limits.gpuHours of 1 is used up before evaluate; the best candidate a1-s40 is kept",
        )
    ]


def test_the_set_is_fixed_and_every_reason_is_a_word_of_the_tables() -> None:
    own = {"StageStarted", "StageSucceeded", "StageFailed", "CandidateSelected", "RolledBack", "Recreated"}
    own |= {"StepsSkipped", "LossSpiked"}
    assert set(EVENTS) == own | set(words.STALLING) | {"Published"}
    assert set(EVENTS) - own <= set(words.REASONS)
    assert {type_ for type_, _ in EVENTS.values()} == {"Normal", "Warning"}
