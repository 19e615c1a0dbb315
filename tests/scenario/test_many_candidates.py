"""The largest adaptations: everything is evaluated once, and the status stays small."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from dapt_contract.pod.failure import Cause
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_operator.testing.objects import Ends, Stays
from support.builders import checkpoint, full_digest, healthy, measure, pretrain_facts
from support.worlds import World

MANY: dict[str, Any] = {
    "pretraining": {"budget": {"steps": 500}, "checkpoints": {"count": 50}},
    "evaluation": {"when": "everyCheckpoint"},
    "selection": {"interpolate": [0.6, 0.8, 1.0], "averageLast": 3},
    "gates": {"onBreach": "Rollback", "rollback": {"maxRollbacks": 2}},
}


def script(stage: StageFile) -> Ends | Stays:
    """Two attempts forget too much from the start, so that each begins anew from the base model; the third ends."""
    config = stage.config
    if isinstance(config, PretrainConfig) and stage.run.attempt < 3:
        count = len(config.checkpoint_steps)
        rows = [
            checkpoint(step, 2.99 - 0.4 * place / count, 0.16 + 0.0028 * place)
            for place, step in enumerate(config.checkpoint_steps, 1)
        ]
        rows[-1] = checkpoint(rows[-1].step, 2.5, 0.7)
        facts = pretrain_facts(rows, "ForgettingLimit", message="past the hard stop")
        return Ends(76, facts=facts, message="past the hard stop", cause=Cause.FORGETTING_LIMIT)
    if isinstance(config, EvaluateConfig):
        found = measure(2.7, increase=0.04, digest=full_digest(config))
        if config.candidate == "a3-s170":
            found = measure(2.7, increase=0.04, domain_gain=0.4, digest=full_digest(config))
        return Ends(facts=EvaluateFacts(candidate=config.candidate, measure=found))
    return healthy(stage)


def test_fifty_checkpoints_in_each_of_three_attempts() -> None:
    world = World(MANY, {"evaluation": {"concurrency": 8}})
    world.live(script)
    assert world.status["phase"] == "Published"
    evaluated = Counter(run.run.candidate for run in world.runs if run.kind == "evaluate")
    assert set(evaluated.values()) == {1}
    checkpoints = {one for one in evaluated if one is not None and "-i" not in one and "avg" not in one}
    trained = [run.config for run in world.runs if isinstance(run.config, PretrainConfig)]
    assert [len(config.checkpoint_steps) for config in trained] == [50, 50, 50]
    assert len(checkpoints) == sum(len(config.checkpoint_steps) for config in trained)
    assert world.status["selected"]["id"] == "a3-s170"
    ledger = world.status["ledger"]
    assert len(ledger["runs"]) <= 40
    assert len(world.status["stages"]) <= 30
    assert len(world.status["candidates"]) <= 100
    assert len(json.dumps(world.status).encode()) <= 240 * 1024
    ended = {(run.run.stage, run.run.attempt, run.run.candidate) for run in world.runs}
    there = {(r["stage"], r["attempt"], r.get("candidate")) for r in ledger["runs"]}
    gone = {tuple(line.split(" ")[:3]) for line in ledger["closed"]["lineages"]}
    assert len(there) + len(gone) == len(ended)
    measured = len(evaluated) * 30 / 3600
    assert world.status["usage"]["gpuHours"] >= round(measured, 2)
    for _ in range(3):
        assert world.reconcile().is_empty
