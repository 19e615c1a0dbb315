"""Tests that the first attempt's share of general text is stored before it starts and not computed again after that."""

from __future__ import annotations

from typing import Any

import pytest

from dapt_contract.measure import Measure
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.api.v1alpha1.spec import DomainAdaptation, DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.plan.ledger.stage_facts import Facts, read_facts
from dapt_operator.plan.sizing import resolve
from dapt_operator.plan.stage_parts import attempts
from support.builders import adaptation, base_measure, checkpoint, healthy, pretrain_facts, side
from support.worlds import World

PLAIN: dict[str, Any] = {
    "selection": {"interpolate": [1.0], "averageLast": 1},
    "evaluation": {"when": "end"},
}
OTHER_SHARE = 0.41
"""What another version of the operator might compute."""


def spec(**over: Any) -> DomainAdaptationSpec:
    return DomainAdaptation.model_validate(adaptation(**over)).spec


def base(shift: float = 0.2) -> Measure:
    return base_measure().model_copy(update={"domain": side(2.8 + shift), "general": side(2.8)})


def facts(shift: float = 0.2, **over: Any) -> Facts:
    return Facts(baseline=BaselineFacts(measure=base(shift)), **over)


def share(spec_: DomainAdaptationSpec, known: Facts, number: int = 1) -> float | None:
    attempt = attempts.find_attempt(spec_, known, number)
    return None if attempt is None else attempt.replay_fraction


@pytest.fixture
def other_version(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The rest of the test is a version whose default is another share."""
    monkeypatch.setattr(attempts, "replay_by_shift", lambda shift: OTHER_SHARE)
    return monkeypatch


def test_a_stored_share_is_taken_whatever_the_default_is_now(other_version: pytest.MonkeyPatch) -> None:
    known = facts(replay_fraction=0.17, is_pretraining_recorded=True)
    assert share(spec(), known) == 0.17
    assert attempts.measured_attempt(spec(), known, base(), 1).replay_fraction == 0.17
    assert attempts.first_replay(spec(), known) == 0.17


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(-0.5, 0.05), (0.0, 0.05), (0.2, 0.09), (0.5, 0.15), (0.56, 0.16), (1.0, 0.25), (2.0, 0.25)],
)
@pytest.mark.parametrize(
    "started", [{"is_pretraining_recorded": True}, {"pretrains": {1: pretrain_facts([checkpoint(10)])}}]
)
def test_an_attempt_that_was_started_without_a_stored_share_keeps_the_line_of_that_version(
    other_version: pytest.MonkeyPatch, shift: float, expected: float, started: dict[str, Any]
) -> None:
    known = facts(shift, **started)
    assert share(spec(), known) == expected
    assert attempts.replay_to_store(spec(), known) is None


def test_the_share_is_to_be_stored_once_the_shift_is_measured_and_chooses_it() -> None:
    assert attempts.replay_to_store(spec(), facts(0.2)) == resolve.replay_by_shift(0.2)
    assert attempts.replay_to_store(spec(), Facts()) is None
    assert attempts.replay_to_store(spec(), facts(replay_fraction=0.17)) is None
    assert attempts.replay_to_store(spec(corpus={"replayFraction": 0.3}), facts()) is None
    assert attempts.replay_to_store(spec(corpus={"generalUse": "measure"}), facts()) is None


def test_what_the_spec_says_of_replay_goes_before_a_stored_share() -> None:
    known = facts(replay_fraction=0.17)
    assert share(spec(corpus={"replayFraction": 0.3}), known) == 0.3
    assert share(spec(corpus={"generalUse": "measure"}), known) == 0.0


def test_facts_have_the_stored_share_and_whether_pretraining_has_started() -> None:
    world = World(PLAIN)
    world.live_until("pretrain")
    found = read_facts(Ledger.model_validate(world.status["ledger"]))
    assert found.replay_fraction == trained(world)[-1].replay_fraction
    assert found.has_started_pretraining
    assert not read_facts(Ledger()).has_started_pretraining


def trained(world: World) -> list[PretrainConfig]:
    return [run.config for run in world.runs if isinstance(run.config, PretrainConfig)]


def test_the_share_is_stored_before_the_run_is_created() -> None:
    world = World(PLAIN)
    world.live(until=lambda world: "replayFraction" in world.status.get("ledger", {}))
    stored = next(number for number, plan in enumerate(world.plans) if plan.status and plan.status.ledger and
                  plan.status.ledger.replay_fraction is not None)  # fmt: skip
    first, second = world.plans[stored], world.plans[stored + 1]
    assert (first.apply, first.requeue_after) == ((), 0.1)
    assert "Job" in [manifest["kind"] for manifest in second.apply]
    assert world.condition("Reconciling")[0] == "True"
    assert trained(world)[-1].replay_fraction == world.status["ledger"]["replayFraction"]


def test_another_version_starts_what_was_stored(other_version: pytest.MonkeyPatch) -> None:
    world = World(PLAIN)
    other_version.undo()
    for _ in range(50):
        if "replayFraction" in world.status.get("ledger", {}):
            break
        if world.reconcile().is_empty:
            world.cluster.run_pods(world.key, healthy)
    expected = world.status["ledger"]["replayFraction"]
    assert world.running is None
    other_version.setattr(attempts, "replay_by_shift", lambda shift: OTHER_SHARE)
    world.reconcile()
    assert (world.running, trained(world)[-1].replay_fraction) == ("pretrain", expected)
    assert world.status["resolved"]["replayFraction"] == expected


def started_by_an_earlier_version(patch: pytest.MonkeyPatch, *, is_interrupted: bool) -> World:
    """A running first attempt of a version that stored no share, observed by one that has another default."""
    patch.setattr(attempts, "replay_by_shift", resolve.earlier_replay_by_shift)
    world = World(PLAIN)
    if is_interrupted:
        world.live_until_interrupted("pretrain")
    else:
        world.live_until("pretrain")
    del world.cluster.stored(world.key).resource["status"]["ledger"]["replayFraction"]
    world.cluster.touch(world.key)
    patch.setattr(attempts, "replay_by_shift", lambda shift: OTHER_SHARE)
    return world


@pytest.mark.parametrize("is_interrupted", [False, True], ids=["stored", "not stored yet"])
def test_an_upgrade_changes_nothing_of_a_running_attempt(
    monkeypatch: pytest.MonkeyPatch, is_interrupted: bool
) -> None:
    world = started_by_an_earlier_version(monkeypatch, is_interrupted=is_interrupted)
    (job,) = world.cluster.live_jobs(world.key)
    world.settle()
    assert [item["metadata"]["name"] for item in world.cluster.live_jobs(world.key)] == [
        job["metadata"]["name"]
    ]
    assert world.status["resolved"]["replayFraction"] == 0.09
    world.live()
    assert world.stages.count("pretrain") == 1
    assert world.status["phase"] == "Published"
    assert [attempt["replayFraction"] for attempt in world.status["attempts"]] == [0.09]
