"""Decides what follows when an attempt has ended: another attempt, evaluations to wait for, a choice, or a breach.

Pure over stored numbers, so that the chain and `dapt rejudge` decide alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dapt_operator.api.v1alpha1.conditions import PIN_UNKNOWN
from dapt_operator.api.v1alpha1.spec import DomainAdaptationSpec
from dapt_operator.api.v1alpha1.stored.ledger import AttemptRecord
from dapt_operator.plan.ledger.stage_facts import Facts
from dapt_operator.plan.selection.candidates import Candidate, due
from dapt_operator.plan.selection.choose import Breached, Choice, NeedsMeasure, choose
from dapt_operator.plan.stage_parts import attempts


@dataclass(frozen=True)
class AttemptDecision:
    """What is decided once no attempt runs and all blends are measured."""

    choice: Choice
    awaited: tuple[Candidate, ...] = ()
    """Candidates that must be evaluated first."""
    rollback: AttemptRecord | None = None
    """The attempt that follows."""


def after_limit(
    spec: DomainAdaptationSpec,
    facts: Facts,
    known: tuple[Candidate, ...],
    *,
    has_diverged: bool,
    message: str,
    now: datetime,
) -> AttemptRecord | None:
    """Return the attempt that follows one which was stopped; None where none is left, or a candidate of it is pinned.

    Args:
        spec: with the gates as they are now.
        facts: of all attempts.
        known: their candidates.
        has_diverged: whether the loss was no number, else it was the forgetting limit.
        message: why, as the trainer reported it.
        now: aware, UTC.
    """
    # Who pins a candidate wants that one, whatever another attempt would give.
    if any(candidate.id == spec.selection.pin for candidate in known):
        return None
    ended = "diverged" if has_diverged else "was stopped at the forgetting limit"
    reason = f"attempt {facts.attempt} {ended}{f': {message}' if message else ''}"
    return _next_attempt(spec, facts, known, reason, now)


def decide_after_attempt(
    spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...], now: datetime
) -> AttemptDecision:
    """Choose among the candidates of all attempts.

    Only evaluations of candidates that pass the perplexity gate on half A can change a choice: where none of those is
    left and nothing passes, another attempt follows at once, and the other evaluations continue in parallel.

    Args:
        spec: with gates and selection as they are now.
        facts: of all attempts.
        known: their candidates.
        now: aware, UTC.
    """
    choice = choose(spec, facts, known)
    awaited = () if spec.selection.pin is not None else due(spec, known)
    if isinstance(choice, Breached):
        return _after_breach(spec, facts, known, choice, awaited, now)
    if awaited:
        return AttemptDecision(NeedsMeasure(choice.candidate), awaited)
    return AttemptDecision(choice, (choice.candidate,) if isinstance(choice, NeedsMeasure) else ())


def _after_breach(
    spec: DomainAdaptationSpec,
    facts: Facts,
    known: tuple[Candidate, ...],
    breach: Breached,
    awaited: tuple[Candidate, ...],
    now: datetime,
) -> AttemptDecision:
    deciding = tuple(candidate for candidate in awaited if candidate.passes_a)
    # A rollback lowers the rate and raises the replay: what learned too little would then learn still less.
    can_help = breach.reason != PIN_UNKNOWN and not breach.learned_too_little
    if not deciding and can_help and not _is_out_of_budget(facts):
        reason = f"attempt {facts.attempt} ended and {breach.why}"
        rollback = _next_attempt(spec, facts, known, reason, now)
        if rollback is not None:
            return AttemptDecision(breach, rollback=rollback)
    if awaited:
        return AttemptDecision(NeedsMeasure((deciding or awaited)[0]), awaited)
    return AttemptDecision(breach)


def _is_out_of_budget(facts: Facts) -> bool:
    """Whether the newest attempt used up pretraining's share of the GPU-hours, so that none is left for another."""
    return facts.pretrain is not None and facts.pretrain.ended_by == "BudgetReached"


def _next_attempt(
    spec: DomainAdaptationSpec, facts: Facts, known: tuple[Candidate, ...], reason: str, now: datetime
) -> AttemptRecord | None:
    failed = frozenset(candidate.id for candidate in known if candidate.is_evaluated and not candidate.passes)
    return attempts.next_attempt(spec, facts, failed=failed, reason=reason, now=now)
