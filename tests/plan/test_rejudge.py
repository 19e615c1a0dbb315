"""Recorded facts give the verdicts and the choice that were given when they were recorded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import Ledger
from dapt_operator.plan.ledger.stage_facts import Facts, read_facts
from dapt_operator.plan.selection.rejudge import Rejudgement, record, recorded, rejudge
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, healthy, measure, merged, pretrain_facts
from support.worlds import World

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
FOLDER = Path(__file__).parent / "recorded"
FILES = sorted(FOLDER.glob("*.json"))


def spec_of(body: dict[str, Any], **over: Any) -> DomainAdaptationSpec:
    return DomainAdaptationSpec.model_validate(merged(body, over))


def told(found: Rejudgement) -> dict[str, Any]:
    """What is compared: every verdict in words and numbers, the stop rule's, the decision."""
    return {
        "stops": {str(number): [one.verdict.value for one in verdicts] for number, verdicts in found.stops},
        "candidates": {
            one.id: [one.passes_on_a, *([v.gate, v.passed, v.reason, v.message] for v in one.verdicts)]
            for one in found.candidates
        },
        "decision": [found.decision, found.candidate, found.reason],
        "attempt": found.attempt.to_dict() if found.attempt is not None else None,
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_run_is_judged_as_it_was(path: Path) -> None:
    body = json.loads(path.read_text(encoding="utf-8"))
    found = rejudge(spec_of(body["spec"]), recorded(body["facts"]), NOW)
    assert json.loads(json.dumps(told(found))) == body["told"]


def test_there_are_runs_of_every_decision() -> None:
    decisions = {json.loads(path.read_text(encoding="utf-8"))["told"]["decision"][0] for path in FILES}
    assert decisions == {"Selected", "NeedsMeasure", "Breached", "RolledBack"}


def of_world(world: World) -> tuple[DomainAdaptationSpec, Facts]:
    raw = world.cluster.observe(world.key)
    assert raw.resource is not None
    return spec_of(dict(raw.resource["spec"])), read_facts(Ledger.model_validate(world.status["ledger"]))


def test_rejudging_a_recorded_ledger_gives_the_same_decision() -> None:
    world = World({"selection": {"interpolate": [0.6, 1.0], "averageLast": 3}})
    world.live()
    spec, facts = of_world(world)
    found = rejudge(spec, facts, NOW)
    assert (found.decision, found.candidate, found.reason) == (
        "Selected", world.status["selected"]["id"], world.status["selected"]["reason"],
    )  # fmt: skip
    assert rejudge(spec, recorded(json.loads(record(facts))), NOW) == found


def test_an_edited_gate_answers_what_if() -> None:
    world = World()
    world.live(forgetful())
    spec, facts = of_world(world)
    assert rejudge(spec, facts, NOW).decision == "Breached"
    raw = world.cluster.observe(world.key)
    assert raw.resource is not None
    wider = spec_of(dict(raw.resource["spec"]), gates={"maxGeneralPerplexityIncrease": 0.5}, evaluation=None)
    assert rejudge(wider, facts, NOW).candidate == "a1-s20"


def test_a_record_without_its_base_is_refused() -> None:
    with pytest.raises(ValueError, match="judging again needs the facts of prepare and baseline"):
        rejudge(of_world(lived())[0], Facts(), NOW)


# --- the lives that were recorded ---


def lived(script: Script = healthy, **over: Any) -> World:
    world = World(over)
    world.live(script)
    return world


def forgetful(ended_by: str = "Completed") -> Script:
    def script(stage: StageFile) -> Ends | Stays:
        if stage.kind != "pretrain" or stage.run.attempt > 1:
            return healthy(stage)
        rows = [checkpoint(10, 2.9, 0.2), checkpoint(20, 2.8, 0.3)]
        if ended_by == "Completed":
            return Ends(facts=pretrain_facts(rows))
        facts = pretrain_facts(rows, ended_by, message="past the hard stop")
        return Ends(76, facts=facts, message="past the hard stop", cause=Cause.FORGETTING_LIMIT)

    return script


def noisy(stage: StageFile) -> Ends | Stays:
    """The best candidate lost more than the limit on a task, within noise."""
    if isinstance(stage.config, EvaluateConfig):
        noisy_measure = measure(general_drop=0.035, error=0.025)
        return Ends(facts=EvaluateFacts(candidate=stage.config.candidate, measure=noisy_measure))
    return healthy(stage)


def after(world: World, stage: str) -> World:
    """The same world as it was before a stage had told anything: its record is left out."""
    ledger = world.status["ledger"]
    ledger["runs"] = [one for one in ledger["runs"] if one["stage"] != stage]
    world.cluster.stored(world.key).resource["status"] |= {"ledger": ledger}
    return world


def lives() -> dict[str, World]:
    shares: dict[str, Any] = {"selection": {"interpolate": [0.6, 0.8, 1.0], "averageLast": 3}}
    rolls: dict[str, Any] = {"gates": {"onBreach": "Rollback"}}
    stopped = lived(forgetful("ForgettingLimit"), **rolls)
    begun = stopped.status["ledger"]
    begun["attempts"], begun["runs"] = [], [one for one in begun["runs"] if one["attempt"] == 1]
    stopped.cluster.stored(stopped.key).resource["status"] |= {"ledger": begun}
    return {
        "life-healthy": lived(**shares),
        "life-unmeasured": after(lived(), "evaluate"),
        "life-within-noise": lived(noisy),
        "life-blocked": lived(forgetful()),
        "life-stopped": stopped,
        "life-second-attempt": lived(forgetful("ForgettingLimit"), **rolls, **shares),
    }


def write() -> None:
    """Record anew: `python tests/plan/test_rejudge.py`, after a change of the gates that is meant."""
    for name, world in lives().items():
        raw = world.cluster.observe(world.key)
        assert raw.resource is not None
        spec, facts = of_world(world)
        body = {
            "spec": raw.resource["spec"],
            "facts": json.loads(record(facts)),
            "told": told(rejudge(spec, facts, NOW)),
        }
        text = json.dumps(body, indent=1, sort_keys=True)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
