"""Recorded reports through the gates again: the same numbers give the same verdicts, choice and rollback.

A record is what `status.ledger` knows (`read_facts`), or a file that `recorded` reads: facts of prepare and baseline,
of pretraining and blends by attempt, measures by candidate, and the attempts that rollbacks began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from dapt_contract.envelope import canonical_json
from dapt_contract.measure import Measure
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.blend import BlendFacts
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.stop_rule import StopDecision, judge_readings
from dapt_operator.api.v1alpha1.ledger import AttemptRecord
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.plan.gates import Verdict
from dapt_operator.plan.ledger.records import compact
from dapt_operator.plan.ledger.stage_facts import Facts, measure_of_row
from dapt_operator.plan.selection.after_attempt import after_limit, decide_after_attempt
from dapt_operator.plan.selection.candidates import candidates
from dapt_operator.plan.selection.choose import Breached, NeedsMeasure, Selected
from dapt_operator.plan.stages.common import stop_rule

STOPPED: Final = frozenset({"ForgettingLimit", "Diverged"})


@dataclass(frozen=True)
class JudgedCandidate:
    """One candidate before the gates."""

    id: str
    passes_on_a: bool
    verdicts: tuple[Verdict, ...]
    """On half B, in the order of the gates."""
    gain_on_a: float


@dataclass(frozen=True)
class Rejudgement:
    """What the numbers say."""

    stops: tuple[tuple[int, tuple[StopDecision, ...]], ...]
    """By attempt: the stop rule's verdict after each reading."""
    candidates: tuple[JudgedCandidate, ...]
    decision: str
    """Selected, NeedsMeasure, Breached or RolledBack."""
    candidate: str | None
    """The one that is taken, or that would be measured next; None after a breach."""
    reason: str
    """Why, in one sentence."""
    attempt: AttemptRecord | None = None
    """The one that follows a rollback."""


def rejudge(spec: DomainAdaptationSpec, facts: Facts, now: datetime) -> Rejudgement:
    """Judge recorded facts as the operator does when the newest attempt has ended.

    Args:
        spec: with gates and selection to judge by; an edited one answers 'what if'.
        facts: recorded.
        now: aware, UTC: when a rollback would be decided.

    Raises:
        ValueError: facts of prepare or baseline are missing.
    """
    if facts.prepare is None or facts.base is None:
        raise ValueError("a replay needs the facts of prepare and baseline")
    known = candidates(spec, facts)
    judged = tuple(JudgedCandidate(one.id, one.passes_a, one.verdicts, one.gain_a) for one in known)
    stops = _stops(spec, facts, facts.base)
    newest = facts.pretrain
    if newest is not None and newest.ended_by in STOPPED:
        diverged = newest.ended_by == "Diverged"
        retreat = after_limit(spec, facts, known, diverged=diverged, said=newest.message, now=now)
        if retreat is not None:
            return Rejudgement(stops, judged, "RolledBack", retreat.start, retreat.reason, retreat)
    outcome = decide_after_attempt(spec, facts, known, now)
    if outcome.retreat is not None:
        return Rejudgement(
            stops, judged, "RolledBack", outcome.retreat.start, outcome.retreat.reason, outcome.retreat
        )
    choice = outcome.choice
    if isinstance(choice, Selected):
        return Rejudgement(stops, judged, "Selected", choice.candidate.id, choice.reason)
    if isinstance(choice, NeedsMeasure):
        reason = f"{choice.candidate.id} is to be evaluated first"
        return Rejudgement(stops, judged, "NeedsMeasure", choice.candidate.id, reason)
    assert isinstance(choice, Breached)
    return Rejudgement(stops, judged, "Breached", None, choice.why)


def _stops(
    spec: DomainAdaptationSpec, facts: Facts, base: Measure
) -> tuple[tuple[int, tuple[StopDecision, ...]], ...]:
    rule, reference = stop_rule(spec), base.general.both.perplexity
    found = []
    for number, told in sorted(facts.pretrains.items()):
        readings = [measure_of_row(base, row).general.both.perplexity for row in told.checkpoints]
        verdicts = tuple(
            judge_readings(rule, reference, readings[: place + 1]) for place in range(len(readings))
        )
        found.append((number, verdicts))
    return tuple(found)


def recorded(body: Mapping[str, Any]) -> Facts:
    """Facts of a record.

    Raises:
        pydantic.ValidationError: a part is not what it should be.
    """
    return Facts(
        prepare=PrepareFacts.model_validate(body["prepare"]) if "prepare" in body else None,
        baseline=BaselineFacts.model_validate(body["baseline"]) if "baseline" in body else None,
        pretrains={
            int(number): PretrainFacts.model_validate(told)
            for number, told in body.get("pretrains", {}).items()
        },
        blends={
            int(number): BlendFacts.model_validate(told).rows
            for number, told in body.get("blends", {}).items()
        },
        measures={name: Measure.model_validate(told) for name, told in body.get("measures", {}).items()},
        expected=dict(body.get("expected", {})),
        given_up=dict(body.get("givenUp", {})),
        attempts=tuple(AttemptRecord.model_validate(one) for one in body.get("attempts", ())),
    )


def record(facts: Facts) -> str:
    """A record of facts as JSON, which `recorded` reads again."""
    body: dict[str, Any] = {
        "pretrains": {str(number): compact(told) for number, told in facts.pretrains.items()},
        "blends": {str(number): compact(BlendFacts(rows=rows)) for number, rows in facts.blends.items()},
        "measures": {name: compact(told) for name, told in facts.measures.items()},
        "expected": dict(facts.expected),
        "givenUp": dict(facts.given_up),
        "attempts": [one.to_dict() for one in facts.attempts],
    }
    if facts.prepare is not None:
        body["prepare"] = compact(facts.prepare)
    if facts.baseline is not None:
        body["baseline"] = compact(facts.baseline)
    return canonical_json({name: part for name, part in body.items() if part})
