"""Judges recorded numbers again: the same numbers give the same verdicts, choice and rollback.

A record is what `status.ledger` holds (`read_facts`), or a file that `recorded` reads: facts of prepare and baseline,
of pretraining and blends by attempt, measures by candidate, and the attempts that rollbacks began.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from dapt_contract.envelope import canonical_json
from dapt_contract.measure import Measure
from dapt_contract.stages.baseline import BaselineFacts
from dapt_contract.stages.blend import BlendFacts
from dapt_contract.stages.prepare import PrepareFacts
from dapt_contract.stages.pretrain import PretrainFacts
from dapt_contract.stop_rule import StopDecision, judge_readings
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec, has_scores
from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord
from dapt_operator.api.v1alpha1.stored.stored_facts import compact_facts
from dapt_operator.plan.gates import Verdict
from dapt_operator.plan.ledger.stage_facts import Facts, measure_of_row
from dapt_operator.plan.selection.after_attempt import after_limit, decide_after_attempt
from dapt_operator.plan.selection.candidates import Candidate, candidates
from dapt_operator.plan.selection.choose import NeedsMeasure, Selected
from dapt_operator.plan.stages.pretrain import stop_rule

STOPPED: Final = frozenset({"ForgettingLimit", "Diverged"})
"""How an attempt ends that is judged at once, whatever its candidates are."""

Decision = Literal["Selected", "NeedsMeasure", "Breached", "RolledBack"]
AttemptStops = tuple[int, tuple[StopDecision, ...]]
"""Number of an attempt, and what the stop rule decides after each of its readings."""


@dataclass(frozen=True)
class JudgedCandidate:
    """One candidate with what the gates say of it."""

    id: str
    passes_on_a: bool
    verdicts: tuple[Verdict, ...]
    """Verdicts on half B, in the order of the gates."""
    gain_on_a: float
    """By perplexity alone, which is known of every candidate."""
    is_judged: bool = True
    """Whether all gates have judged it; False before its tasks were measured."""


@dataclass(frozen=True)
class Rejudgement:
    """What is decided from the recorded numbers."""

    stops: tuple[AttemptStops, ...]
    candidates: tuple[JudgedCandidate, ...]
    decision: Decision
    candidate: str | None
    """The candidate that is taken, or that is measured next; None after a breach."""
    reason: str
    """Why, in one sentence."""
    attempt: AttemptRecord | None = None
    """The attempt with which a rollback follows."""


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
        raise ValueError("judging again needs the facts of prepare and baseline")
    known = candidates(spec, facts)
    decision, candidate, reason, attempt = _decide(spec, facts, known, now)
    return Rejudgement(
        stops=tuple(_stops(spec, facts, facts.base)),
        candidates=tuple(
            JudgedCandidate(
                candidate.id,
                candidate.passes_a,
                candidate.verdicts,
                candidate.gain_a,
                is_judged=candidate.is_evaluated or not has_scores(spec),
            )
            for candidate in known
        ),
        decision=decision,
        candidate=candidate,
        reason=reason,
        attempt=attempt,
    )


def _decide(
    spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...], now: datetime
) -> tuple[Decision, str | None, str, AttemptRecord | None]:
    """Return decision, candidate, reason and the attempt that follows, in the order in which the chain decides."""
    newest = facts.pretrain
    if newest is not None and newest.ended_by in STOPPED:
        has_diverged = newest.ended_by == "Diverged"
        rollback = after_limit(spec, facts, known, has_diverged=has_diverged, message=newest.message, now=now)
        if rollback is not None:
            return "RolledBack", rollback.start, rollback.reason, rollback
    outcome = decide_after_attempt(spec, facts, known, now)
    if outcome.rollback is not None:
        return "RolledBack", outcome.rollback.start, outcome.rollback.reason, outcome.rollback
    choice = outcome.choice
    if isinstance(choice, Selected):
        return "Selected", choice.candidate.id, choice.reason, None
    if isinstance(choice, NeedsMeasure):
        return "NeedsMeasure", choice.candidate.id, f"{choice.candidate.id} is to be evaluated first", None
    return "Breached", None, choice.why, None


def _stops(spec: DomainAdaptationSpec, facts: Facts, base: Measure) -> Iterator[AttemptStops]:
    rule, reference = stop_rule(spec), base.general.both.perplexity
    for number, pretrain_facts in sorted(facts.pretrains.items()):
        readings = [measure_of_row(base, row).general.both.perplexity for row in pretrain_facts.checkpoints]
        # After each reading the rule knows that one and those before it.
        prefixes = (readings[: index + 1] for index in range(len(readings)))
        yield number, tuple(judge_readings(rule, reference, prefix) for prefix in prefixes)


def recorded(body: Mapping[str, Any]) -> Facts:
    """Return the facts of a record.

    Raises:
        pydantic.ValidationError: a part does not fit its model.
    """
    return Facts(
        prepare=PrepareFacts.model_validate(body["prepare"]) if "prepare" in body else None,
        baseline=BaselineFacts.model_validate(body["baseline"]) if "baseline" in body else None,
        pretrains={
            int(number): PretrainFacts.model_validate(stored)
            for number, stored in body.get("pretrains", {}).items()
        },
        blends={
            int(number): BlendFacts.model_validate(stored).rows
            for number, stored in body.get("blends", {}).items()
        },
        measures={name: Measure.model_validate(stored) for name, stored in body.get("measures", {}).items()},
        expected=dict(body.get("expected", {})),
        given_up=dict(body.get("givenUp", {})),
        attempts=tuple(AttemptRecord.model_validate(stored) for stored in body.get("attempts", ())),
    )


def record(facts: Facts) -> str:
    """Return a record of facts as JSON, which `recorded` reads again."""
    body: dict[str, Any] = {
        "pretrains": {str(number): compact_facts(part) for number, part in facts.pretrains.items()},
        "blends": {
            str(number): compact_facts(BlendFacts(rows=rows)) for number, rows in facts.blends.items()
        },
        "measures": {name: compact_facts(measure) for name, measure in facts.measures.items()},
        "expected": dict(facts.expected),
        "givenUp": dict(facts.given_up),
        "attempts": [attempt.to_dict() for attempt in facts.attempts],
    }
    if facts.prepare is not None:
        body["prepare"] = compact_facts(facts.prepare)
    if facts.baseline is not None:
        body["baseline"] = compact_facts(facts.baseline)
    return canonical_json({name: part for name, part in body.items() if part})
