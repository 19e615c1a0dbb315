"""An adaptation of a realistic size: twenty checkpoints, sixteen tasks on each, and numbers of full length."""

from __future__ import annotations

import math
import random
from typing import Any

from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_contract.stage_file import StageFile
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.evaluate import EvaluateConfig, EvaluateFacts
from dapt_contract.stages.pretrain import PretrainConfig
from dapt_contract.stages.verify import VerifyFacts
from dapt_operator.testing.objects import Ends, Script, Stays
from support.builders import checkpoint, full_digest, healthy, pretrain_facts

CHECKPOINTS = 20
TASKS = {
    "domain": [f"clinical-coding-task-{number}" for number in range(8)],
    "general": [f"general-knowledge-{number}" for number in range(8)],
}
GROWN: dict[str, Any] = {
    "model": {"source": "s3://models/base"},
    "corpus": {"domain": [{"source": "s3://text/d.jsonl"}], "general": [{"source": "s3://text/g.jsonl"}]},
    "pretraining": {"budget": {"steps": 2000}, "checkpoints": {"count": CHECKPOINTS}},
    "evaluation": {
        "when": "everyCheckpoint",
        **{
            side: {"tasks": [{"name": name, "source": f"s3://eval/{name}.jsonl"} for name in names]}
            for side, names in TASKS.items()
        },
    },
    "finetuning": {"data": [{"source": "s3://text/i.jsonl"}]},
    "output": {"destination": "s3://out/model"},
}
"""Spec that is laid over the ordinary one; its sources can be read on a cluster."""


def grown_script(seed: int = 0) -> Script:
    """Every stage ends well and reports as much as a stage of that size does."""
    random_numbers = random.Random(seed)

    def near(value: float) -> float:
        return value + random_numbers.random() / 100

    def half(nats: float) -> Perplexity:
        return Perplexity(nll_nats=near(nats) * 51_234, tokens=51_234, bytes=251_234)

    def side(nats: float) -> SidePerplexity:
        return SidePerplexity(a=half(nats), b=half(nats))

    def score(name: str, of_side: Any, compared: bool) -> Score:
        change = near(0.1 if of_side == "domain" else -0.01)
        comparison = {
            "difference": change,
            "difference_standard_error": near(0.012),
            "score_a": near(0.5),
            "difference_b": near(change),
            "difference_b_standard_error": near(0.02),
        }
        return Score(
            name=name,
            side=of_side,
            kind="task",
            items=500,
            score=near(0.45),
            standard_error=near(0.022),
            **(comparison if compared else {}),
        )

    def measured(digest: str, *, compared: bool = True) -> Measure:
        scores = (score(name, of_side, compared) for of_side, names in TASKS.items() for name in names)
        return Measure(
            digest=digest.ljust(64, "0"),
            domain=side(2.7 if compared else 3.0),
            general=side(2.8 + (math.log1p(0.04) if compared else 0.0)),
            scores=tuple(scores),
        )

    def script(stage: StageFile) -> Ends | Stays:
        config = stage.config
        if stage.kind == "baseline":
            return Ends(facts=BaselineFacts(measure=measured("base", compared=False)))
        if isinstance(config, EvaluateConfig):
            found = EvaluateFacts(candidate=config.candidate, measure=measured(full_digest(config)))
            return Ends(facts=found)
        if stage.kind == "verify":
            digests = tuple((name, name[0] * 64) for name in ("base", "chosen", "final"))
            return Ends(facts=VerifyFacts(final=measured("final"), digests=digests))
        if isinstance(config, PretrainConfig):
            count = len(config.checkpoint_steps)
            rows = [
                checkpoint(step, near(3.0 - 0.5 * place / count), near(0.05))
                for place, step in enumerate(config.checkpoint_steps, 1)
            ]
            return Ends(facts=pretrain_facts(rows))
        return healthy(stage)

    return script
