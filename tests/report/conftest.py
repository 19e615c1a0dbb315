"""Builds a small finished run from made-up values."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dapt_contract.base import Contract
from dapt_contract.measure import Measure, Perplexity, Score, SidePerplexity
from dapt_contract.run_identity import RunIdentity
from dapt_contract.stage_file import StageFile, write_report
from dapt_contract.stages import KINDS
from dapt_contract.stages.baseline import BaselineFacts, BaselineReport
from dapt_contract.stages.evaluate import EvaluateFacts, EvaluateReport
from dapt_contract.stages.prepare import ModelFacts, PrepareFacts, PrepareReport, SourceFacts
from dapt_contract.stages.pretrain import CheckpointFacts, CurvePoint, PretrainFacts, PretrainReport
from dapt_contract.stages.verify import NamedMeasure, Sample, VerifyFacts, VerifyReport

CHOSEN = "a1-s60"
SPEC: dict[str, Any] = {
    "model": {"source": "file://data/model.gguf"},
    "corpus": {
        "domain": [{"source": "file://data/icd.jsonl"}],
        "general": [{"source": "file://data/readmes.jsonl"}],
        "replayFraction": 0.1,
    },
    "pretraining": {"method": {"lora": {"rank": 64}}, "checkpoints": {"count": 5}},
    "evaluation": {
        "domain": {"tasks": [{"name": "codes", "source": "file://data/codes.jsonl", "fewShot": 0}]},
        "general": {"tasks": [{"name": "facts", "source": "file://data/facts.jsonl", "fewShot": 0}]},
        "probes": {"domain": [{"source": "file://data/probes.jsonl"}]},
    },
    "gates": {"maxGeneralPerplexityIncrease": 0.15, "minDomainPerplexityDecrease": 0.25},
    "output": {"destination": "file://out"},
    "resources": {"nodes": 2, "gpusPerNode": 1},
}


def side(loss: float, tokens: int = 4000) -> SidePerplexity:
    half = Perplexity(nll_nats=loss * tokens / 2, tokens=tokens // 2, bytes=2 * tokens)
    return SidePerplexity(a=half, b=half)


def scores(codes: float, facts: float, probes: float, *, paired: bool) -> tuple[Score, ...]:
    base = {"codes": 0.31, "facts": 0.45, "probes-domain-0": 0.402}
    rows = [("codes", "domain", "task", 120, codes), ("facts", "general", "task", 60, facts)]
    rows.append(("probes-domain-0", "domain", "probe", 100, probes))
    return tuple(
        Score(
            name=name, side=which, kind=kind, items=items, score=score,
            standard_error=math.sqrt(score * (1 - score) / items),
            difference=score - base[name] if paired else None,
            difference_standard_error=0.021 if paired else None,
        )
        for name, which, kind, items, score in rows
    )  # fmt: skip


BASE = Measure(
    digest="b" * 64, domain=side(3.1), general=side(2.9), scores=scores(0.31, 0.45, 0.402, paired=False)
)
CHECKPOINTS = [(12, 2.9, 2.95), (24, 2.8, 2.97), (36, 2.74, 2.96), (48, 2.7, 2.94), (60, 2.68, 2.93)]
CHOSEN_MEASURE = Measure(
    digest="c" * 64, domain=side(2.68), general=side(2.93), scores=scores(0.32, 0.44, 0.498, paired=True)
)
FINAL = Measure(
    digest="f" * 64, domain=side(2.75), general=side(2.99), scores=scores(0.47, 0.43, 0.49, paired=True)
)


@dataclass
class Run:
    """Reports by kind, and the status; tests remove parts of it."""

    reports: dict[str, Contract]
    status: dict[str, Any]
    resource: dict[str, Any]

    def write(self, folder: Path) -> Path:
        """Write the run's folder as a local run does, and return it."""
        for kind, report in self.reports.items():
            candidate = CHOSEN if kind in ("evaluate", "verify") else None
            identity = RunIdentity(
                namespace="default", name="icd", uid="u", stage=kind, attempt=1, candidate=candidate,
                try_number=1, fence=1,
            )  # fmt: skip
            config = KINDS[kind].config.model_construct()
            write_report(folder / "work", StageFile(run=identity, kind=kind, config=config), report)
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        (folder / "objects" / "domainadaptation-quickstart.json").write_text(json.dumps(self.resource))
        shown = {name: value for name, value in self.resource.items() if name != "spec"} | {
            "status": self.status
        }
        with (folder / "status.yaml").open("w") as file:
            YAML(typ="safe", pure=True).dump(shown, file)
        return folder


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no charts, for tests about text: drawing takes most of the time."""
    monkeypatch.setattr("dapt_operator.report.page.draw_charts", lambda _: ())


@pytest.fixture
def finished() -> Run:
    """A published run with fine-tuning."""
    return Run(_reports(), copy.deepcopy(_STATUS), {"metadata": {"name": "icd"}, "spec": copy.deepcopy(SPEC)})


def _reports() -> dict[str, Contract]:
    source = {"documents": 900, "train_tokens": 60_211, "sequences": 236, "duplicates": 17, "contaminated": 4}
    prepare = PrepareFacts(
        model=ModelFacts(
            architecture="LlamaForCausalLM", parameters=134_515_008, hidden_size=576, layers=30,
            vocabulary_size=49_152, attention_heads=9, key_value_heads=3, intermediate_size=1536,
            max_positions=8192, tied_embeddings=True, has_chat_template=True, revision="sha256:12ab", digest="d",
            weights_bytes=538_060_032,
        ),
        sources=(
            SourceFacts(
                side="domain", index=0, held_out_documents=61, held_out_tokens=4000, cut_documents=3,
                fill_fraction=0.9981, **source,
            ),
            SourceFacts(
                side="general", index=0, held_out_documents=33, held_out_tokens=4000,
                **source | {"train_tokens": 28_004, "duplicates": 2},
            ),
        ),
        sequence_length_tokens=256, domain_tokens=60_211, general_tokens=28_004, data_digest="sha256:1",
        warnings=("the base model has a chat template: continued pre-training costs the chat ability",),
    )  # fmt: skip
    rows = tuple(
        CheckpointFacts(
            step=step, try_number=1, domain_a_nats=domain, domain_b_nats=domain, general_a_nats=general,
            general_b_nats=general, weights_digest="c" * 12,
        )
        for step, domain, general in CHECKPOINTS
    )  # fmt: skip
    curve = tuple(
        CurvePoint(
            step=step,
            loss_nats=2.5 + 0.6 * math.exp(-step / 15) + 0.08 * math.sin(step * 2.1),
            learning_rate=2.5e-4 * (1 + math.cos(math.pi * step / 60)),
        )
        for step in range(1, 61)
    )
    facts = PretrainFacts(
        ended_by="Completed", steps=60, tokens=61_440, checkpoints=rows, tokens_per_second=243.0
    )
    digests = (("base", "b" * 64), ("chosen", "c" * 64), ("final", "f" * 64))
    return {
        "prepare": PrepareReport(
            facts=prepare,
            shared_by_source=(("domain-0", 5), ("general-0", 5)),
            contained_by_source=(("domain-0", 0), ("general-0", 1_200)),
        ),
        "baseline": BaselineReport(facts=BaselineFacts(measure=BASE)),
        "pretrain": PretrainReport(
            facts=facts, curve=curve, tokens_by_source=(("domain-0", 55_296), ("general-0", 6144))
        ),
        "evaluate": EvaluateReport(facts=EvaluateFacts(candidate=CHOSEN, measure=CHOSEN_MEASURE)),
        "verify": VerifyReport(
            facts=VerifyFacts(final=FINAL, digests=digests),
            measures=tuple(
                NamedMeasure(name=name, measure=measure)
                for name, measure in (("base", BASE), ("chosen", CHOSEN_MEASURE), ("final", FINAL))
            ),
            samples=(
                Sample(
                    prompt="Which ICD-10-CM code stands for type 2 diabetes mellitus without complications?",
                    answers=(
                        ("base", "The ICD-10-CM code for type 2 diabetes is 250.00. It is a code that"),
                        (
                            "chosen",
                            "E11: Type 2 diabetes mellitus. Includes: diabetes (mellitus) due to insulin",
                        ),
                        ("final", "E11.9"),
                    ),
                ),
            ),
        ),
    }


def _stage(name: str, start: str, end: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "kind": name, "attempt": 1, "try": 1, "state": "Succeeded",
        "startTime": f"2026-03-01T10:{start}Z", "completionTime": f"2026-03-01T10:{end}Z",
    } | more  # fmt: skip


_STATUS: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Published",
    "conditions": [
        {
            "type": "Finished", "status": "True", "reason": "Published", "message": "model published to file://out",
            "lastTransitionTime": "2026-03-01T10:14:00Z",
        },
        {
            "type": "GatesPassed", "status": "True", "reason": "AllGatesPassed",
            "message": "a1-s60 passes every gate", "lastTransitionTime": "2026-03-01T10:14:00Z",
        },
    ],
    "attempt": 1,
    "resolved": {"learningRate": 5.0e-4, "replayFraction": 0.1, "sequenceLength": 256, "totalTokens": 61440},
    "plan": {"tokens": 61440, "warnings": ["under 100 M domain tokens: consider retrieval instead"]},
    "stages": [
        _stage("prepare", "00:00", "00:41"),
        _stage("baseline", "00:41", "02:10"),
        _stage("pretrain", "02:10", "08:30", **{"try": 2}),
        _stage("evaluate", "08:30", "09:40", candidate=CHOSEN),
        _stage("finetune", "09:40", "11:20", candidate=CHOSEN),
        _stage("verify", "11:20", "13:30", candidate=CHOSEN),
        _stage("publish", "13:30", "14:00", candidate=CHOSEN),
    ],
    "candidates": [
        {
            "id": f"a1-s{step}", "attempt": 1, "step": step,
            "domainPerplexity": math.exp(domain), "generalPerplexity": math.exp(general),
            "forgetting": math.expm1(general - 2.9), "domainPerplexityDecrease": -math.expm1(domain - 3.1),
            "gain": 3.1 - domain, "passes": step == 60,
        }
        for step, domain, general in CHECKPOINTS
    ],
    "selected": {"id": CHOSEN, "reason": "largest gain of 5 candidates within the perplexity limit on half A;"
        " it passes the gates on half B"},
    "output": {"destination": "file://out", "digest": "sha256:0", "deployable": True},
}  # fmt: skip
